//! The nested state of one vCPU. L0 calls [`Engine::on_l1_instruction`] for an exit from L1 by a VMX instruction,
//! [`Engine::on_l2_exit`] for every exit from L2, and [`Engine::before_l2_entry`] before each entry to L2; after each
//! call it hands [`Engine::invalidations`] to the processor. While [`Engine::in_l2`], the VMCS to enter is
//! [`Engine::vmcs02`], else L0's vmcs01.

use crate::counters::Counters;
use crate::ept::ShadowEpt;
use crate::ept::walk::Format;
use crate::ept01::Ept01;
use crate::invalidations::Invalidations;
use crate::merge::bitmaps::MsrBitmaps;
use crate::merge::fields::ControlsOf;
use crate::timer::Timer;
use crate::vpid::Vpids;
use std::ops::Range;
use vmcs12::addr::{Gpa, Linear, Pa, Physical};
use vmcs12::arch::event::Exception;
use vmcs12::caps::Capabilities;
use vmcs12::cpu_state::CpuState;
use vmcs12::error::Abort;
use vmcs12::exit::Reason;
use vmcs12::field::{AnyField, Vmcs, VmcsSet, table};
use vmcs12::region;

/// MSRs of L1 that are neither in a VMCS nor in [`CpuState`]: L0 has them. For the MSR lists of VM entry and exit.
pub trait Msrs {
    /// RDMSR at privilege level 0; `None` where it would fault.
    fn read(&mut self, index: u32) -> Option<u64>;
    /// WRMSR at privilege level 0; false where it would fault.
    fn write(&mut self, index: u32, value: u64) -> bool;
}

/// What the engine works on: L1's memory and registers, and the time.
pub struct Host<'a, P: Physical, L: Linear, M: Msrs> {
    /// Machine-physical memory.
    pub memory: &'a P,
    /// L1's linear memory, for memory operands.
    pub linear: &'a mut L,
    /// L1's other MSRs.
    pub msrs: &'a mut M,
    /// vmcs01; the cached vmcs12 is linked to it.
    pub vmcs01: &'a mut VmcsSet,
    /// Registers in no VMCS.
    pub state: &'a mut CpuState,
    /// L1's time-stamp counter now.
    pub tsc: u64,
}

/// What an exit from L1 by a VMX instruction came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// The instruction is done; L1 goes on behind it.
    Completed,
    /// L1 gets this exception; nothing has changed. L0 injects it.
    Exception(Exception),
    /// VM entry: L2 runs now.
    Entered,
    /// VM entry failed as an exit: L1 goes on at its host RIP.
    Reflected,
    /// VMX abort: L1's processor is in shutdown. The indicator is in the VMCS region.
    Abort(Abort),
}

/// What an exit from L2 came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum L2Exit {
    /// The engine has done what was to do; L2 goes on.
    Resumed,
    /// L1 has got the exit and goes on at its host RIP.
    Reflected,
    /// L0 has something to do for L2 before it goes on.
    L0(Task),
    /// VMX abort: L1's processor is in shutdown. The indicator is in the VMCS region.
    Abort(Abort),
}

/// What L0 has to do for L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// What it does when L1 exits for this reason, on vmcs02 in place of vmcs01: the instruction reaches L1's devices
    /// or MSRs as L1's own would. An exception that it raises goes to [`Engine::raise`].
    Emulate(Reason),
    /// L2 accessed this L1-physical address, which is not RAM: the access reaches L1's devices. The L2-physical
    /// address is in vmcs02.
    Mmio(Gpa),
    /// L2 halted; RIP has moved on and the activity state says so.
    Halt,
}

/// What waits to be taken when L2 is about to be entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// An INIT signal.
    pub init: bool,
    /// An NMI.
    pub nmi: bool,
    /// A maskable interrupt: the vector that its acknowledgement would return.
    pub interrupt: Option<u8>,
}

impl Pending {
    /// Does anything wait?
    pub fn any(self) -> bool {
        self.init || self.nmi || self.interrupt.is_some()
    }
}

/// What of [`Pending`] has been taken: L0 acknowledges it and lets it pend no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Nothing; all that waits goes on waiting.
    Nothing,
    /// The INIT signal.
    Init,
    /// The NMI.
    Nmi,
    /// The interrupt: L0 acknowledges it.
    Interrupt,
}

/// What to do in place of, or before, the entry to L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Decision {
    /// Enter L2.
    Enter(Taken),
    /// Enter L2 with a budget of no instruction, so that the injected event is delivered, and ask again.
    Deliver,
    /// L2 is not active and nothing wakes it: let time pass until something waits, or until
    /// [`Engine::halted_until`], and ask again.
    Halted,
    /// L1 has got an exit and goes on at its host RIP.
    Reflected(Taken),
    /// VMX abort: L1's processor is in shutdown.
    Abort(Abort),
}

/// Is L1 in VMX operation, and is L2 running?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// VMXON has not been executed.
    Outside,
    /// L1 runs, in what is VMX root operation to it.
    Root,
    /// L2 runs.
    NonRoot,
}

/// Pages of L0's arena that vmcs01 and vmcs02 point to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// A region that vmcs01's link pointer can name.
    pub(crate) link: Pa,
    /// VMREAD bitmap of vmcs01.
    pub(crate) vmread: Pa,
    /// VMWRITE bitmap of vmcs01.
    pub(crate) vmwrite: Pa,
    /// MSR bitmaps of vmcs02.
    pub(crate) msr: Pa,
}

impl Pages {
    const COUNT: u64 = 4;

    fn at(start: Pa) -> Self {
        let page = |n: u64| start.plus(n * region::SIZE as u64);
        Self { link: page(0), vmread: page(1), vmwrite: page(2), msr: page(3) }
    }
}

/// The nested state of one vCPU.
pub struct Engine {
    /// What the processor runs for L2.
    pub vmcs02: VmcsSet,
    /// What the processor has to forget before it runs again; L0 drains it after each call.
    pub invalidations: Invalidations,
    /// Counts.
    pub counters: Counters,
    /// IA32_FEATURE_CONTROL of this vCPU: L0's RDMSR and WRMSR go to it.
    pub feature_control: u64,
    /// The rule that the last VM entry of L1's broke, for reports; an entry that succeeds leaves it alone.
    pub broken_rule: Option<&'static str>,
    pub(crate) offered: Capabilities,
    pub(crate) machine: Capabilities,
    pub(crate) operation: Operation,
    pub(crate) vmxon_pointer: Gpa,
    pub(crate) current: Option<crate::current::Current>,
    /// The place for a vmcs12 while there is no current one; otherwise it is linked to vmcs01.
    pub(crate) vacant: Option<Box<Vmcs>>,
    /// A VMCS region on its way from or to memory.
    pub(crate) region: Box<[u8; region::SIZE]>,
    /// Fields that the profile lacks: 0, whatever a region in memory says.
    pub(crate) absent: Vec<AnyField>,
    pub(crate) ept: ShadowEpt,
    pub(crate) vpids: Vpids,
    pub(crate) pages: Pages,
    pub(crate) msr_bitmaps: MsrBitmaps,
    pub(crate) timer: Timer,
    /// vmcs01's controls, when they were last merged.
    pub(crate) merged_with: ControlsOf,
}

impl Engine {
    /// The state after reset. `offered` is what L1's capability MSRs say, `machine` what vmcs01 and vmcs02 may use;
    /// `arena` is memory of L0's own for bitmaps and the tables of ept02.
    pub fn new<P: Physical>(
        offered: Capabilities,
        machine: Capabilities,
        ept01: Ept01,
        arena: Range<Pa>,
        memory: &P,
    ) -> Self {
        let pages = Pages::at(arena.start);
        let tables = arena.start.plus(Pages::COUNT * region::SIZE as u64)..arena.end;
        let engine = Self {
            vmcs02: VmcsSet { current: Box::default(), linked: None, writers: None, shadow_accesses: (0, 0) },
            invalidations: Invalidations::default(),
            counters: Counters::default(),
            feature_control: 0,
            broken_rule: None,
            operation: Operation::Outside,
            vmxon_pointer: Gpa(0),
            current: None,
            vacant: Some(Box::default()),
            region: Box::new([0; region::SIZE]),
            absent: (0..table::COUNT)
                .map(AnyField::at)
                .filter(|&field| !offered.field_exists(field))
                .collect(),
            ept: ShadowEpt::new(ept01, Format::new(&offered), tables),
            vpids: Vpids::default(),
            pages,
            msr_bitmaps: MsrBitmaps::default(),
            merged_with: ControlsOf::default(),
            timer: Timer::default(),
            offered,
            machine,
        };
        engine.prepare_pages(memory);
        engine
    }

    /// Is L2 the guest to run?
    #[inline]
    pub fn in_l2(&self) -> bool {
        self.operation == Operation::NonRoot
    }

    /// Has L1 executed VMXON? Then it may not clear CR4.VMXE, and INIT is blocked while L1 itself runs.
    #[inline]
    pub fn in_vmx_operation(&self) -> bool {
        self.operation != Operation::Outside
    }

    /// What L1's capability MSRs say.
    pub fn offered(&self) -> &Capabilities {
        &self.offered
    }

    /// After INIT or reset of the vCPU: out of VMX operation. The cached vmcs12 is written back.
    pub fn reset<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>) {
        self.release_current(host);
        self.operation = Operation::Outside;
    }
}

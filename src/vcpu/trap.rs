//! What L0 does when the guest that runs exits and the exit is L0's: one table.

use super::control_register::{self, VmxOperation};
use super::io;
use super::model::Model;
use super::msr::{Access, Own, Registers};
use crate::config::End;
use crate::machine::board::Board;
use crate::processor::soft::Soft;
use vmcs12::addr::{Gpa, Pa};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::Exception;
use vmcs12::cpu_state::{CpuState, gpr};
use vmcs12::cpuid::Registers as CpuidRegisters;
use vmcs12::exit::qualification::{ControlRegisterAccess, ControlRegisterAccessKind};
use vmcs12::exit::{Exit, Reason};
use vmcs12::field::VmcsSet;
use vmcs12::field::table::*;

/// What L0 works on while it handles an exit: of L1, or of L2 in L1's place.
pub struct Trap<'a> {
    /// The VMCS of the guest that exited, and what is linked to it.
    pub vmcs: &'a mut VmcsSet,
    /// What is in no VMCS.
    pub state: &'a mut CpuState,
    /// The vCPU's own MSRs.
    pub registers: &'a mut Registers,
    /// The processor.
    pub soft: &'a mut Soft,
    /// Clock and devices.
    pub board: &'a mut Board,
    /// What L1 was promised.
    pub model: &'a Model,
    /// The vCPU's number.
    pub vcpu: usize,
    /// Is L1 in VMX operation?
    pub operation: VmxOperation,
}

/// How an exit ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Then {
    /// The instruction is done: RIP moves on, and it counts as one.
    Next,
    /// The guest goes on where it is; this many instructions count.
    Again(u64),
    /// The instruction raises an exception.
    Raise(Exception),
    /// The instruction is done, and the guest waits for an interrupt.
    Wait(Waiting),
    /// The processor completed the instruction, and this is what came of it.
    Completed(Exit),
    /// The run ends.
    End(End),
}

/// How a guest waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// HLT: until an interrupt that is let through.
    Halted,
    /// MWAIT: until an interrupt, or nothing worth waiting for.
    Monitoring,
}

/// Who handles an exit from L1.
#[derive(Clone, Copy)]
pub enum Handler {
    /// L0, so.
    L0(fn(&mut Trap) -> Then),
    /// The nested engine: a VMX instruction.
    Engine,
    /// Nobody: vmcs01 never asks for it.
    Never,
}
use Handler::{Engine, L0, Never};

const UNDEFINED: Handler = L0(|_| Then::Raise(Exception::UD));
const NOTHING_TO_DO: Handler = L0(|_| Then::Next);
const GO_ON: Handler = L0(|_| Then::Again(0));

#[rustfmt::skip]
const HANDLERS: [(Reason, Handler); Reason::COUNT] = [
    // exit from L1                        who handles it
    (Reason::ExceptionOrNmi,              Never),
    (Reason::ExternalInterrupt,           GO_ON),
    (Reason::TripleFault,                 L0(|_| Then::End(End::TripleFault))),
    (Reason::InitSignal,                  Never),
    (Reason::StartupIpi,                  Never),
    (Reason::IoSmi,                       Never),
    (Reason::OtherSmi,                    Never),
    (Reason::InterruptWindow,             GO_ON),   // the next entry injects
    (Reason::NmiWindow,                   GO_ON),
    (Reason::TaskSwitch,                  L0(task_switch)),
    (Reason::Cpuid,                       L0(cpuid)),
    (Reason::Getsec,                      UNDEFINED),
    (Reason::Hlt,                         L0(|_| Then::Wait(Waiting::Halted))),
    (Reason::Invd,                        NOTHING_TO_DO),   // no cache holds anything that memory does not
    (Reason::Invlpg,                      Never),
    (Reason::Rdpmc,                       L0(|_| Then::Raise(Exception::gp(0)))),   // no counters are offered
    (Reason::Rdtsc,                       L0(rdtsc)),
    (Reason::Rsm,                         UNDEFINED),
    (Reason::Vmcall,                      Engine),
    (Reason::Vmclear,                     Engine),
    (Reason::Vmlaunch,                    Engine),
    (Reason::Vmptrld,                     Engine),
    (Reason::Vmptrst,                     Engine),
    (Reason::Vmread,                      Engine),
    (Reason::Vmresume,                    Engine),
    (Reason::Vmwrite,                     Engine),
    (Reason::Vmxoff,                      Engine),
    (Reason::Vmxon,                       Engine),
    (Reason::ControlRegisterAccess,       L0(control_register)),
    (Reason::MovDr,                       Never),
    (Reason::IoInstruction,               L0(io::instruction)),
    (Reason::Rdmsr,                       L0(rdmsr)),
    (Reason::Wrmsr,                       L0(wrmsr)),
    (Reason::EntryFailureGuestState,      Never),
    (Reason::EntryFailureMsrLoading,      Never),
    (Reason::Mwait,                       L0(mwait)),
    (Reason::MonitorTrapFlag,             Never),
    (Reason::Monitor,                     L0(monitor)),
    (Reason::Pause,                       NOTHING_TO_DO),
    (Reason::EntryFailureMachineCheck,    Never),
    (Reason::TprBelowThreshold,           Never),
    (Reason::ApicAccess,                  Never),
    (Reason::VirtualizedEoi,              Never),
    (Reason::GdtrIdtrAccess,              Never),
    (Reason::LdtrTrAccess,                Never),
    (Reason::EptViolation,                L0(ept_violation)),
    (Reason::EptMisconfiguration,         Never),
    (Reason::Invept,                      Engine),
    (Reason::Rdtscp,                      L0(rdtscp)),
    (Reason::VmxPreemptionTimerExpired,   Never),
    (Reason::Invvpid,                     Engine),
    (Reason::WbinvdOrWbnoinvd,            NOTHING_TO_DO),
    (Reason::Xsetbv,                      L0(xsetbv)),
    (Reason::ApicWrite,                   Never),
    (Reason::Rdrand,                      Never),
    (Reason::Invpcid,                     Never),
    (Reason::Vmfunc,                      UNDEFINED),
    (Reason::Encls,                       UNDEFINED),
    (Reason::Rdseed,                      Never),
    (Reason::PageModificationLogFull,     Never),
    (Reason::Xsaves,                      Never),
    (Reason::Xrstors,                     Never),
    (Reason::Pconfig,                     UNDEFINED),
    (Reason::SppRelatedEvent,             Never),
    (Reason::Umwait,                      UNDEFINED),
    (Reason::Tpause,                      UNDEFINED),
    (Reason::Loadiwkey,                   UNDEFINED),
    (Reason::Enclv,                       UNDEFINED),
    (Reason::EnqcmdPasidTranslation,      UNDEFINED),
    (Reason::EnqcmdsPasidTranslation,     UNDEFINED),
    (Reason::BusLock,                     Never),
    (Reason::InstructionTimeout,          Never),
    (Reason::Seamcall,                    UNDEFINED),
    (Reason::Tdcall,                      UNDEFINED),
    (Reason::Rdmsrlist,                   UNDEFINED),
    (Reason::Wrmsrlist,                   UNDEFINED),
    (Reason::Urdmsr,                      UNDEFINED),
    (Reason::Uwrmsr,                      UNDEFINED),
    (Reason::RdmsrImmediate,              UNDEFINED),
    (Reason::WrmsrnsImmediate,            UNDEFINED),
];

const NUMBERS: usize = Reason::ALL[Reason::COUNT - 1] as usize + 1;

/// The table by the reasons' numbers.
const BY_NUMBER: [Handler; NUMBERS] = {
    let mut table = [Never; NUMBERS];
    let mut i = 0;
    while i < HANDLERS.len() {
        assert!(HANDLERS[i].0 as u16 == Reason::ALL[i] as u16, "row i is reason i");
        table[HANDLERS[i].0 as usize] = HANDLERS[i].1;
        i += 1;
    }
    table
};

/// Who handles an exit from L1 for this reason.
#[inline]
pub fn handler(reason: Reason) -> Handler {
    BY_NUMBER[reason as usize]
}

impl Trap<'_> {
    /// A general register of the guest's, by its number in an instruction.
    pub fn gpr(&self, number: usize) -> u64 {
        match number & 15 {
            gpr::RSP => self.vmcs.current.get(GUEST_RSP),
            number => self.state.gpr[number],
        }
    }

    /// Writes a general register of the guest's.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        match number & 15 {
            gpr::RSP => self.vmcs.current.set(GUEST_RSP, value),
            number => self.state.gpr[number] = value,
        }
    }

    /// EDX:EAX.
    fn edx_eax(&self) -> u64 {
        self.state.gpr[gpr::RDX] << 32 | self.state.gpr[gpr::RAX] & 0xffff_ffff
    }

    fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.state.gpr[gpr::RDX] = value >> 32;
    }

    fn ecx(&self) -> u32 {
        self.state.gpr[gpr::RCX] as u32
    }

    /// The MSRs of the guest that exited.
    fn msrs<R>(&mut self, access: impl FnOnce(&mut Access) -> R) -> R {
        let mut own = Own {
            registers: self.registers,
            devices: &mut self.board.devices,
            vcpu: self.vcpu,
            clock: &self.board.clock,
            model: self.model,
        };
        access(&mut Access { vmcs: &mut self.vmcs.current, state: self.state, own: &mut own })
    }
}

/// #GP(0) for what does not exist.
fn or_gp(done: Option<()>) -> Then {
    match done {
        Some(()) => Then::Next,
        None => Then::Raise(Exception::gp(0)),
    }
}

fn cpuid(trap: &mut Trap) -> Then {
    let (leaf, subleaf) = (trap.state.gpr[gpr::RAX] as u32, trap.ecx());
    let current = super::model::Current {
        cr4: control_register::visible_cr4(&trap.vmcs.current),
        xcr0: trap.state.xcr0,
        xss: trap.state.xss,
        apic: trap.board.devices.apic(trap.vcpu),
        is_64_bit: shadow::mode::is_64_bit(&trap.vmcs.current),
    };
    let CpuidRegisters { eax, ebx, ecx, edx } = trap.model.cpuid(leaf, subleaf, &current);
    for (register, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        trap.state.gpr[register] = u64::from(value);
    }
    Then::Next
}

/// RDTSC exits only under the host clock, so that it never shows less than the host's time.
fn rdtsc(trap: &mut Trap) -> Then {
    let tsc = trap.board.clock.tsc().wrapping_add(trap.vmcs.current.get(TSC_OFFSET));
    trap.set_edx_eax(tsc);
    Then::Next
}

fn rdtscp(trap: &mut Trap) -> Then {
    trap.state.gpr[gpr::RCX] = trap.state.tsc_aux & 0xffff_ffff;
    rdtsc(trap)
}

fn rdmsr(trap: &mut Trap) -> Then {
    let index = trap.ecx();
    match trap.msrs(|msrs| msrs.read(index)) {
        Some(value) => {
            trap.set_edx_eax(value);
            Then::Next
        }
        None => Then::Raise(Exception::gp(0)),
    }
}

fn wrmsr(trap: &mut Trap) -> Then {
    let (index, value) = (trap.ecx(), trap.edx_eax());
    or_gp(trap.msrs(|msrs| msrs.write(index, value)))
}

fn xsetbv(trap: &mut Trap) -> Then {
    match control_register::xsetbv(trap.ecx(), trap.edx_eax(), trap.model.offer.xcr0) {
        Ok(value) => {
            trap.state.xcr0 = value;
            Then::Next
        }
        Err(exception) => Then::Raise(exception),
    }
}

/// MONITOR names what MWAIT waits for; with one processor nobody can write there.
fn monitor(trap: &mut Trap) -> Then {
    match (trap.model.monitor, trap.ecx()) {
        (false, _) => Then::Raise(Exception::UD),
        (true, 0) => Then::Next,
        (true, _) => Then::Raise(Exception::gp(0)),
    }
}

/// MWAIT's only extension, ECX bit 0: interrupts end the wait even while they are masked, as here they always do.
const MWAIT_EXTENSIONS: u32 = 1;

fn mwait(trap: &mut Trap) -> Then {
    match (trap.model.monitor, trap.ecx() & !MWAIT_EXTENSIONS) {
        (false, _) => Then::Raise(Exception::UD),
        (true, 0) => Then::Wait(Waiting::Monitoring),
        (true, _) => Then::Raise(Exception::gp(0)),
    }
}

/// CR0's upper half of the task-priority register, as CR8 shows it.
const CR8_SHIFT: u32 = 4;
const CR8_BITS: u64 = 0xf;

fn control_register(trap: &mut Trap) -> Then {
    let access = ControlRegisterAccess(trap.vmcs.current.get(EXIT_QUALIFICATION));
    let number = usize::from(access.get(ControlRegisterAccess::GPR));
    let kind = access.get(ControlRegisterAccess::KIND);
    match (kind, access.get(ControlRegisterAccess::REGISTER)) {
        (ControlRegisterAccessKind::MovToCr, 0) => write_cr0(trap, trap.gpr(number)),
        (ControlRegisterAccessKind::MovToCr, 4) => write_cr4(trap, trap.gpr(number)),
        (ControlRegisterAccessKind::MovToCr, 8) => write_cr8(trap, trap.gpr(number)),
        (ControlRegisterAccessKind::MovFromCr, 8) => {
            let priority = trap.board.devices.apic(trap.vcpu).task_priority();
            trap.set_gpr(number, u64::from(priority >> CR8_SHIFT));
            Then::Next
        }
        (ControlRegisterAccessKind::Lmsw, _) => {
            let machine_status = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
            let source = u64::from(access.get(ControlRegisterAccess::LMSW_SOURCE));
            let old = control_register::visible_cr0(&trap.vmcs.current);
            write_cr0(trap, old & !(machine_status & !cr0::PE) | source & machine_status)
        }
        (kind, register) => {
            Then::End(End::Broken(format!("vmcs01 does not intercept {kind:?} of CR{register}")))
        }
    }
}

fn write_cr0(trap: &mut Trap, value: u64) -> Then {
    again_or(control_register::write_cr0(&mut trap.vmcs.current, value))
}

fn write_cr4(trap: &mut Trap, value: u64) -> Then {
    let (supported, operation) = (trap.model.offer.cr4, trap.operation);
    debug_assert!(supported & cr4::VMXE == 0 || trap.model.offer.caps.has_vmx());
    again_or(control_register::write_cr4(&mut trap.vmcs.current, value, supported, operation))
}

fn again_or(done: Result<(), Exception>) -> Then {
    match done {
        Ok(()) => Then::Again(0),
        Err(exception) => Then::Raise(exception),
    }
}

fn write_cr8(trap: &mut Trap, value: u64) -> Then {
    if value & !CR8_BITS != 0 {
        return Then::Raise(Exception::gp(0));
    }
    trap.board.devices.apic_mut(trap.vcpu).set_task_priority((value << CR8_SHIFT) as u8);
    Then::Next
}

fn task_switch(_: &mut Trap) -> Then {
    Then::End(End::Broken("the guest switched tasks by hardware, which is not implemented".into()))
}

/// An access to what ept01 does not map: a device's memory, or nobody's.
fn ept_violation(trap: &mut Trap) -> Then {
    complete(trap, Holes::Identity)
}

/// L2 accessed guest-physical pages that stand for addresses of L1's without memory.
pub fn device_memory(trap: &mut Trap, pages: &HolePages) -> Then {
    complete(trap, Holes::Pages(pages))
}

/// Lets the processor complete the instruction, or the delivery of the event, that was stopped, with the devices where
/// no memory is.
fn complete(trap: &mut Trap, holes: Holes<'_>) -> Then {
    let Board { devices, clock, .. } = &mut *trap.board;
    let mut bus = DeviceMemory { devices, vcpu: trap.vcpu, now_ns: clock.now_ns(), holes };
    Then::Completed(trap.soft.complete(trap.vmcs, trap.state, clock, &mut bus))
}

/// What guest-physical addresses without memory are, in L1's address space.
#[derive(Clone, Copy)]
enum Holes<'a> {
    /// The same address: the guest is L1.
    Identity,
    /// What is known of the pages: the guest is L2.
    Pages(&'a HolePages),
}

/// Guest-physical pages of L2 that one instruction accesses and that have no memory, and the pages of L1 that they
/// stand for. More than the instructions that access the most can cross into.
#[derive(Clone, Copy, Debug)]
pub struct HolePages {
    pages: [(Pa, Pa); Self::MOST],
    known: usize,
}

impl HolePages {
    const MOST: usize = 8;

    /// Forgets them: another instruction, or an L1 that has run.
    #[inline]
    pub fn clear(&mut self) {
        self.known = 0;
    }

    /// Keeps that the page of `accessed` stands for that of `at`.
    pub fn add(&mut self, accessed: Pa, at: Gpa) {
        if let Some(place) = self.pages.get_mut(self.known) {
            *place = (accessed.page(), Pa(at.0).page());
            self.known += 1;
        }
    }

    fn find(&self, page: Pa) -> Option<Pa> {
        self.pages[..self.known].iter().find(|(accessed, _)| *accessed == page).map(|(_, hole)| *hole)
    }
}

impl Default for HolePages {
    fn default() -> Self {
        Self { pages: [(Pa(0), Pa(0)); Self::MOST], known: 0 }
    }
}

/// The devices, to one instruction of the guest.
struct DeviceMemory<'a> {
    devices: &'a mut crate::device::Devices,
    vcpu: usize,
    now_ns: u64,
    holes: Holes<'a>,
}

impl cpu::Bus for DeviceMemory<'_> {
    fn hole(&self, at: u64) -> Option<Pa> {
        match self.holes {
            Holes::Identity => Some(Pa(at)),
            Holes::Pages(pages) => pages.find(Pa(at).page()),
        }
    }
    fn read(&mut self, at: Pa, size: usize) -> u64 {
        self.devices.mmio_read(self.vcpu, at.0, size as u8, self.now_ns)
    }
    fn write(&mut self, at: Pa, size: usize, value: u64) {
        self.devices.mmio_write(self.vcpu, at.0, size as u8, value, self.now_ns);
    }
}

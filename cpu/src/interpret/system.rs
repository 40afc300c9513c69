//! The system instructions: which handler runs each, and how a handler ends.

mod control;
mod debug;
mod far;
mod fast_call;
mod flags;
mod interrupt;
mod io;
mod iret;
mod msr;
mod processor;
mod segments;
mod tables;
mod translation;
mod vmx;

use super::operand::{self, Width, register, set_register};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::mmu::{Fault, Kind};
use crate::state::{BLOCK_RIP, Cpu, Stop, ZERO, lacks};
use iced_x86::{Mnemonic, OpKind};
use vmcs12::arch::event::{Exception, RecordedEvent};
use vmcs12::exit::{Cause, Reason};

/// Set in [`Op::extra`]: the operand that may be a register or memory is memory.
const MEMORY: u16 = 1 << 14;

/// How an instruction ends that completes.
enum Flow {
    /// The block goes on.
    Next,
    /// The run loop looks again.
    Leave,
    /// It has set RIP.
    To(u64),
    /// A trap-like VM exit follows it.
    Trap(Reason),
}

/// How an instruction ends that does not complete. Nothing has changed.
enum End {
    Fault(Fault),
    /// [`Cpu::stop`] already says why.
    Stopped,
    /// A fault-like VM exit.
    Exit {
        reason: Reason,
        qualification: u64,
        information: u32,
    },
}

/// What a system instruction gives.
type Step = Result<Flow, End>;

impl<T: Into<Fault>> From<T> for End {
    fn from(fault: T) -> Self {
        Self::Fault(fault.into())
    }
}

/// A VM exit with neither qualification nor instruction information.
fn exit<T>(reason: Reason) -> Result<T, End> {
    Err(End::Exit { reason, qualification: 0, information: 0 })
}

/// A VM exit with an exit qualification.
fn qualified_exit<T>(reason: Reason, qualification: u64) -> Result<T, End> {
    Err(End::Exit { reason, qualification, information: 0 })
}

/// #GP(0).
fn general_protection<T>() -> Result<T, End> {
    Err(Exception::gp(0).into())
}

/// #UD.
fn undefined<T>() -> Result<T, End> {
    Err(Exception::UD.into())
}

/// The value, or the fault that `stop` holds.
fn done<T>(value: Option<T>) -> Result<T, End> {
    value.ok_or(End::Stopped)
}

/// Ends the handler of `op` as its step says.
#[inline(always)]
unsafe fn finish(cpu: &mut Cpu, op: *const Op, step: Step) -> *const Op {
    match step {
        Ok(Flow::Next) => super::onward!(op),
        Ok(Flow::Leave) => cpu.leave_after(op),
        Ok(Flow::To(rip)) => cpu.leave_to(op, rip),
        Ok(Flow::Trap(reason)) => trap(cpu, op, reason),
        Err(end) => stop(cpu, op, end),
    }
}

#[cold]
#[inline(never)]
fn trap(cpu: &mut Cpu, op: *const Op, reason: Reason) -> *const Op {
    cpu.leave_after(op);
    cpu.record_event_exit(reason, 0, RecordedEvent::default(), 0, 0);
    cpu.stop = Stop::Exit(Cause::Vm(reason));
    std::ptr::null()
}

#[cold]
#[inline(never)]
fn stop(cpu: &mut Cpu, op: *const Op, end: End) -> *const Op {
    match end {
        End::Fault(fault) => {
            cpu.stop = Stop::Fault(fault);
            cpu.stop_at(op)
        }
        End::Stopped => cpu.stop_at(op),
        End::Exit { reason, qualification, information } => {
            cpu.instruction_exit_with(op, reason, qualification, information)
        }
    }
}

/// The handler around a `fn(&mut Cpu, &Op) -> Step`.
macro_rules! handler {
    ($($body:tt)+) => {{
        unsafe fn run(cpu: &mut Cpu, op: *const Op) -> *const Op {
            // SAFETY: handlers are called with a live operation, which outlives the step.
            let step = $($body)+(cpu, unsafe { &*op });
            // SAFETY: as above; an instruction that gives `Flow::Next` does not end its block.
            unsafe { finish(cpu, op, step) }
        }
        run as crate::block::Handler
    }};
}

impl Cpu {
    /// Privileged instructions raise #GP(0) outside CPL 0.
    fn require_cpl_0(&self) -> Result<(), End> {
        if self.cpl == 0 { Ok(()) } else { general_protection() }
    }

    /// Instructions that only protected mode has raise #UD in real-address and virtual-8086 mode.
    fn require_protected(&self) -> Result<(), End> {
        if self.protected() && !self.virtual_8086() { Ok(()) } else { undefined() }
    }

    /// The linear address of the memory operand.
    fn operand_linear(&mut self, op: &Op, size: usize, kind: Kind) -> Result<u64, End> {
        let offset = self.effective_address(op);
        done(self.segmented(op, op.segment, offset, size, kind))
    }

    /// Reads the memory operand `above` bytes above its address.
    fn load_operand<T: Width>(&mut self, op: &Op, above: u64) -> Result<T, End> {
        let offset = self.effective_address(op).wrapping_add(above) & operand::address_mask(op);
        let linear = done(self.segmented(op, op.segment, offset, T::SIZE, Kind::Read))?;
        done(self.load(op, linear))
    }

    /// Reads the operand that may be a register ([`Op::src`]) or memory.
    fn read_either<T: Width>(&mut self, op: &Op) -> Result<T, End> {
        if op.extra & MEMORY != 0 { self.load_operand(op, 0) } else { Ok(register(self, op.src)) }
    }

    /// Writes a 16-bit value to memory, or to a register in the operand size of [`Op::imm`].
    fn write_either_16(&mut self, op: &Op, value: u64) -> Result<(), End> {
        if op.extra & MEMORY != 0 {
            let linear = self.operand_linear(op, 2, Kind::Write)?;
            return done(self.store(op, linear, value as u16));
        }
        self.set_register_sized(op.src, op.imm, value);
        Ok(())
    }

    /// Writes a register in an operand size of 2, 4 or 8 bytes.
    fn set_register_sized(&mut self, offset: u8, size: u64, value: u64) {
        match size {
            2 => set_register(self, offset, value as u16),
            4 => set_register(self, offset, value as u32),
            _ => set_register(self, offset, value),
        }
    }

    /// Pushes a value of 2, 4 or 8 bytes.
    fn push_sized(&mut self, op: &Op, size: u64, value: u64) -> Result<(), End> {
        done(match (size, self.is_64()) {
            (2, true) => self.push::<u16, true>(op, value as u16),
            (_, true) => self.push::<u64, true>(op, value),
            (2, false) => self.push::<u16, false>(op, value as u16),
            (_, false) => self.push::<u32, false>(op, value as u32),
        })
    }

    /// Reads the value of 2, 4 or 8 bytes that stands `above` bytes above the top of the stack.
    fn peek_sized(&mut self, op: &Op, size: u64, above: u64) -> Result<u64, End> {
        done(match (size, self.is_64()) {
            (2, true) => self.peek::<u16, true>(op, above).map(u64::from),
            (4, true) => self.peek::<u32, true>(op, above).map(u64::from),
            (_, true) => self.peek::<u64, true>(op, above),
            (2, false) => self.peek::<u16, false>(op, above).map(u64::from),
            (8, false) => self.peek::<u64, false>(op, above),
            (_, false) => self.peek::<u32, false>(op, above).map(u64::from),
        })
    }

    /// Adds to the stack pointer.
    fn release_stack(&mut self, by: u64) {
        if self.is_64() { self.move_stack::<true>(by) } else { self.move_stack::<false>(by) }
    }

    /// The block goes on, unless something must be looked at between two instructions.
    fn next_or_leave(&self) -> Flow {
        if self.attention { Flow::Leave } else { Flow::Next }
    }
}

/// Number of the general register with this offset.
fn register_number(offset: u8) -> u32 {
    u32::from(offset / 8)
}

/// The fields that most layouts of VM-exit instruction information share.
/// SDM Vol. 3, "Information for VM Exits Due to Instruction Execution".
fn memory_information(op: &Op) -> u32 {
    let present = |index: u8| usize::from(index) < ZERO;
    let index = if present(op.scaled) { u32::from(op.scale) | u32::from(op.scaled) << 18 } else { 1 << 22 };
    let base = if present(op.base) { u32::from(op.base) << 23 } else { 1 << 27 };
    index | base | address_size_information(op) | u32::from(op.segment) << 15
}

/// Address size, bits 9:7 of VM-exit instruction information.
fn address_size_information(op: &Op) -> u32 {
    let size = match op.extra & (operand::extra::ADDRESS_16 | operand::extra::ADDRESS_32) {
        operand::extra::ADDRESS_16 => 0,
        operand::extra::ADDRESS_32 => 1,
        _ => 2,
    };
    size << 7
}

/// Exit qualification of an instruction with a memory operand: its displacement.
fn displacement(cpu: &Cpu, op: &Op) -> u64 {
    if usize::from(op.base) == BLOCK_RIP { cpu.effective_address(op) } else { i64::from(op.disp) as u64 }
}

/// Resolves operand `i`, a general register or memory: `src` or the memory operand.
fn set_either(d: &Decoding<'_>, op: &mut Op, i: u32) {
    match d.inst.op_kind(i) {
        OpKind::Memory => op.extra |= MEMORY,
        _ => op.src = register_offset(d.inst.op_register(i)),
    }
}

/// The extension that an instruction belongs to, as a bit of `Lacks`; 0: the base.
fn extension(mnemonic: Mnemonic) -> u64 {
    match mnemonic {
        Mnemonic::Rdrand => lacks::RDRAND,
        Mnemonic::Rdseed => lacks::RDSEED,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => lacks::FSGSBASE,
        Mnemonic::Xgetbv | Mnemonic::Xsetbv => lacks::XSAVE,
        Mnemonic::Clflushopt => lacks::CLFLUSHOPT,
        Mnemonic::Clwb => lacks::CLWB,
        Mnemonic::Rdpid => lacks::RDPID,
        Mnemonic::Clac | Mnemonic::Stac => lacks::SMAP,
        Mnemonic::Rdpkru | Mnemonic::Wrpkru => lacks::PKU,
        Mnemonic::Monitor | Mnemonic::Mwait => lacks::MONITOR,
        Mnemonic::Rdtscp => lacks::RDTSCP,
        _ => 0,
    }
}

/// The handler of a system instruction.
pub(crate) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    if d.lacks.has(extension(d.inst.mnemonic())) {
        return None;
    }
    let selectors = [
        flags::select,
        interrupt::select,
        iret::select,
        far::select,
        fast_call::select,
        segments::select,
        tables::select,
        control::select,
        debug::select,
        msr::select,
        io::select,
        processor::select,
        translation::select,
        vmx::select,
    ];
    selectors.into_iter().find_map(|select| select(d, op))
}

use handler;

//! x87 instructions that move the control state, and EMMS.

use super::super::operand::{Address, Flat, Segmented};
use super::super::{attempt, onward};
use super::by_address;
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::mmu::Kind;
use crate::native::software::OperandSize;
use crate::native::x87::{self, ENVIRONMENT_MAX, Layout, SAVE_MAX};
use crate::native::{Class, Software};
use crate::state::Cpu;
use vmcs12::cpu_state::gpr::RAX;

/// The handler; the operand size of those with an environment is in `src`.
pub(super) fn select(software: Software, d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if let Software::Fldenv(size)
    | Software::Fnstenv(size)
    | Software::Frstor(size)
    | Software::Fnsave(size) = software
    {
        op.src = u8::from(size == OperandSize::Bits32);
    }
    Some(match software {
        Software::Fwait => fwait,
        Software::Nothing => obsolete,
        Software::Fninit => fninit,
        Software::Fnclex => fnclex,
        Software::Emms => emms,
        Software::FnstswAx => fnstsw_ax,
        Software::Fldcw => by_address!(d, fldcw),
        Software::Fnstcw => by_address!(d, fnstcw),
        Software::FnstswMemory => by_address!(d, fnstsw),
        Software::Fldenv(_) => by_address!(d, fldenv),
        Software::Fnstenv(_) => by_address!(d, fnstenv),
        Software::Frstor(_) => by_address!(d, frstor),
        Software::Fnsave(_) => by_address!(d, fnsave),
        _ => return None,
    })
}

impl Cpu {
    fn environment_layout(&self, op: &Op) -> Layout {
        let size = if op.src == 0 { OperandSize::Bits16 } else { OperandSize::Bits32 };
        size.layout(self.protected() && !self.virtual_8086())
    }

    fn x87_operand<A: Address>(&mut self, op: &Op, len: usize, kind: Kind) -> Option<u64> {
        self.vector_ready(Class::X87)?;
        A::linear(self, op, len, kind)
    }

    fn store_word<A: Address>(&mut self, op: &Op, word: u16) -> Option<()> {
        let linear = self.x87_operand::<A>(op, 2, Kind::Write)?;
        self.write_operand(op, linear, &word.to_le_bytes())
    }

    fn load_x87<A: Address, const LEN: usize>(&mut self, op: &Op, len: usize) -> Option<[u8; LEN]> {
        self.vector_ready(Class::X87)?;
        self.x87_ready()?;
        let linear = A::linear(self, op, len, Kind::Read)?;
        let mut image = [0; LEN];
        self.read_operand(op, linear, &mut image[..len])?;
        Some(image)
    }
}

unsafe fn fwait(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::Wait));
    attempt!(cpu, op, cpu.x87_ready());
    onward!(op)
}

unsafe fn obsolete(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::X87));
    onward!(op)
}

unsafe fn fninit(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::X87));
    x87::initialize(cpu.vector_state());
    onward!(op)
}

unsafe fn fnclex(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::X87));
    x87::clear_exceptions(cpu.vector_state());
    onward!(op)
}

unsafe fn emms(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::Mmx));
    attempt!(cpu, op, cpu.x87_ready());
    x87::leave_mmx(cpu.vector_state());
    onward!(op)
}

unsafe fn fnstsw_ax(cpu: &mut Cpu, op: *const Op) -> *const Op {
    attempt!(cpu, op, cpu.vector_ready(Class::X87));
    let word = cpu.vector_state().fsw;
    cpu.gpr[RAX] = cpu.gpr[RAX] & !0xffff | u64::from(word);
    onward!(op)
}

unsafe fn fldcw<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let word = attempt!(cpu, op, cpu.load_x87::<A, 2>(this, 2));
    x87::load_control(cpu.vector_state(), u16::from_le_bytes(word));
    onward!(op)
}

unsafe fn fnstcw<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let fcw = cpu.vector_state().fcw;
    attempt!(cpu, op, cpu.store_word::<A>(this, fcw));
    onward!(op)
}

unsafe fn fnstsw<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let fsw = cpu.vector_state().fsw;
    attempt!(cpu, op, cpu.store_word::<A>(this, fsw));
    onward!(op)
}

unsafe fn fldenv<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let layout = cpu.environment_layout(this);
    let image = attempt!(cpu, op, cpu.load_x87::<A, ENVIRONMENT_MAX>(this, layout.environment_len()));
    x87::load_environment(cpu.vector_state(), layout, &image);
    onward!(op)
}

unsafe fn fnstenv<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let layout = cpu.environment_layout(this);
    let len = layout.environment_len();
    let linear = attempt!(cpu, op, cpu.x87_operand::<A>(this, len, Kind::Write));
    attempt!(cpu, op, cpu.writable_operand(this, linear, len));
    let image = x87::store_environment(cpu.vector_state(), layout);
    attempt!(cpu, op, cpu.write_operand(this, linear, &image[..len]));
    onward!(op)
}

unsafe fn frstor<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let layout = cpu.environment_layout(this);
    let image = attempt!(cpu, op, cpu.load_x87::<A, SAVE_MAX>(this, layout.save_len()));
    x87::restore(cpu.vector_state(), layout, &image);
    onward!(op)
}

unsafe fn fnsave<A: Address>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let layout = cpu.environment_layout(this);
    let len = layout.save_len();
    let linear = attempt!(cpu, op, cpu.x87_operand::<A>(this, len, Kind::Write));
    attempt!(cpu, op, cpu.writable_operand(this, linear, len));
    let image = x87::save(cpu.vector_state(), layout);
    attempt!(cpu, op, cpu.write_operand(this, linear, &image[..len]));
    onward!(op)
}

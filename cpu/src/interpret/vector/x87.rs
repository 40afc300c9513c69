//! x87 instructions that move the control state, and EMMS.

use super::super::operand::Address;
use super::{by_address, outlined};
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
        Software::Fwait => outlined!(fwait),
        Software::Nothing => outlined!(obsolete),
        Software::Fninit => outlined!(fninit),
        Software::Fnclex => outlined!(fnclex),
        Software::Emms => outlined!(emms),
        Software::FnstswAx => outlined!(fnstsw_ax),
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

#[inline(never)]
fn fwait(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::Wait)?;
    cpu.x87_ready()?;
    Some(())
}

#[inline(never)]
fn obsolete(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::X87)?;
    Some(())
}

#[inline(never)]
fn fninit(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::X87)?;
    x87::initialize(cpu.vector_state());
    Some(())
}

#[inline(never)]
fn fnclex(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::X87)?;
    x87::clear_exceptions(cpu.vector_state());
    Some(())
}

#[inline(never)]
fn emms(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::Mmx)?;
    cpu.x87_ready()?;
    x87::leave_mmx(cpu.vector_state());
    Some(())
}

#[inline(never)]
fn fnstsw_ax(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::X87)?;
    let word = cpu.vector_state().fsw;
    cpu.gpr[RAX] = cpu.gpr[RAX] & !0xffff | u64::from(word);
    Some(())
}

#[inline(never)]
fn fldcw<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let word = cpu.load_x87::<A, 2>(op, 2)?;
    x87::load_control(cpu.vector_state(), u16::from_le_bytes(word));
    Some(())
}

#[inline(never)]
fn fnstcw<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let fcw = cpu.vector_state().fcw;
    cpu.store_word::<A>(op, fcw)?;
    Some(())
}

#[inline(never)]
fn fnstsw<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let fsw = cpu.vector_state().fsw;
    cpu.store_word::<A>(op, fsw)?;
    Some(())
}

#[inline(never)]
fn fldenv<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let layout = cpu.environment_layout(op);
    let image = cpu.load_x87::<A, ENVIRONMENT_MAX>(op, layout.environment_len())?;
    x87::load_environment(cpu.vector_state(), layout, &image);
    Some(())
}

#[inline(never)]
fn fnstenv<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let layout = cpu.environment_layout(op);
    let len = layout.environment_len();
    let linear = cpu.x87_operand::<A>(op, len, Kind::Write)?;
    cpu.writable_operand(op, linear, len)?;
    let image = x87::store_environment(cpu.vector_state(), layout);
    cpu.write_operand(op, linear, &image[..len])?;
    Some(())
}

#[inline(never)]
fn frstor<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let layout = cpu.environment_layout(op);
    let image = cpu.load_x87::<A, SAVE_MAX>(op, layout.save_len())?;
    x87::restore(cpu.vector_state(), layout, &image);
    Some(())
}

#[inline(never)]
fn fnsave<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let layout = cpu.environment_layout(op);
    let len = layout.save_len();
    let linear = cpu.x87_operand::<A>(op, len, Kind::Write)?;
    cpu.writable_operand(op, linear, len)?;
    let image = x87::save(cpu.vector_state(), layout);
    cpu.write_operand(op, linear, &image[..len])?;
    Some(())
}

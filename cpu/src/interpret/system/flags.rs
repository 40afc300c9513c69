//! Instructions on RFLAGS. SDM Vol. 1, "Flag Control (EFLAG) Instructions".
//!
//! Deviation: CR4.VME and CR4.PVI have no effect; with IOPL below CPL the instructions fault as without them.

use super::{End, Flow, Step, finish, general_protection, handler, undefined};
use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::flags::Status;
use crate::interpret::operand::{register, set_register};
use crate::state::Cpu;
use vmcs12::arch::rflags;

/// Byte offset of AH in the general registers.
const AH: u8 = 1;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    let (size, handler) = match d.inst.mnemonic() {
        Clc => (0, handler!(carry::<false>)),
        Stc => (0, handler!(carry::<true>)),
        Cmc => (0, handler!(cmc)),
        Cld => (0, handler!(cld)),
        Std => (0, handler!(std)),
        Cli => (0, handler!(cli)),
        Sti => (0, handler!(sti)),
        Lahf => (0, handler!(lahf)),
        Sahf => (0, handler!(sahf)),
        Clac => (0, handler!(alignment::<0>)),
        Stac => (0, handler!(alignment::<{ rflags::AC }>)),
        Pushf => (2, handler!(pushf)),
        Pushfd => (4, handler!(pushf)),
        Pushfq => (8, handler!(pushf)),
        Popf => (2, handler!(popf)),
        Popfd => (4, handler!(popf)),
        Popfq => (8, handler!(popf)),
        _ => return None,
    };
    op.imm = size;
    Some(Selected::next(handler))
}

fn carry<const CARRY: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.status = cpu.status.with_carry(CARRY);
    Ok(Flow::Next)
}

fn cmc(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.status = cpu.status.with_carry(!cpu.status.carry());
    Ok(Flow::Next)
}

fn cld(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.rflags &= !rflags::DF;
    Ok(Flow::Next)
}

fn std(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.rflags |= rflags::DF;
    Ok(Flow::Next)
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Step {
    let flags = cpu.status.bits() | rflags::FIXED;
    set_register(cpu, AH, flags as u8);
    Ok(Flow::Next)
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Step {
    let low = u64::from(register::<u8>(cpu, AH));
    cpu.status = Status::from_bits((cpu.status.bits() & rflags::OF) | (low & rflags::STATUS & !rflags::OF));
    Ok(Flow::Next)
}

fn cli(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cpl > cpu.iopl() {
        return general_protection();
    }
    cpu.rflags &= !rflags::IF;
    Ok(Flow::Next)
}

/// STI: interrupts stay blocked for one more instruction if they were.
fn sti(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl > cpu.iopl() {
        return general_protection();
    }
    if cpu.rflags & rflags::IF == 0 {
        cpu.sti_shadow = cpu.retired_before(op) + 1;
        cpu.rflags |= rflags::IF;
    }
    Ok(cpu.next_or_leave())
}

/// CLAC and STAC.
fn alignment<const AC: u64>(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cpl > 0 {
        return undefined();
    }
    cpu.rflags = (cpu.rflags & !rflags::AC) | AC;
    if AC == 0 {
        cpu.end_smap_suspension();
    }
    Ok(Flow::Next)
}

/// Virtual-8086 mode leaves the flags alone unless IOPL is 3.
fn require_iopl(cpu: &Cpu) -> Result<(), End> {
    if cpu.virtual_8086() && cpu.iopl() < 3 { general_protection() } else { Ok(()) }
}

fn pushf(cpu: &mut Cpu, op: &Op) -> Step {
    require_iopl(cpu)?;
    let image = cpu.full_rflags() & !(rflags::VM | rflags::RF);
    cpu.push_sized(op, op.imm, image)?;
    Ok(Flow::Next)
}

fn popf(cpu: &mut Cpu, op: &Op) -> Step {
    require_iopl(cpu)?;
    let image = cpu.peek_sized(op, op.imm, 0)?;
    cpu.release_stack(op.imm);
    let mut writable = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    if op.imm == 2 {
        writable &= 0xffff;
    }
    let kept = cpu.full_rflags() & !(writable | rflags::RF);
    cpu.set_full_rflags(kept | (image & writable));
    Ok(cpu.next_or_leave())
}

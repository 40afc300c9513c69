//! MOV DR. SDM Vol. 2, "MOV—Move to/from Debug Registers"; Vol. 3, "Debug Registers".

use super::{
    End, Flow, Step, finish, general_protection, handler, qualified_exit, register_number, undefined,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::fault::debug::{dr6, dr7};
use crate::interpret::operand::register;
use crate::state::Cpu;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;
use vmcs12::control::MOV_DR_EXITING;
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::DebugRegisterAccess;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Code::*;
    let inst = d.inst;
    match inst.code() {
        Mov_r32_dr | Mov_r64_dr => {
            op.src = register_offset(inst.op0_register());
            op.dst = inst.op1_register().number() as u8;
            Some(Selected::next(handler!(read)))
        }
        Mov_dr_r32 | Mov_dr_r64 => {
            op.src = register_offset(inst.op1_register());
            op.dst = inst.op0_register().number() as u8;
            Some(Selected::end(handler!(write)))
        }
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    From,
    To,
}

/// The register that is meant, after all that comes before the access: the exit beats CPL and CR4.DE.
fn checked(cpu: &mut Cpu, op: &Op, direction: Direction) -> Result<u8, End> {
    if op.dst > 7 {
        return undefined();
    }
    if cpu.controls.has(MOV_DR_EXITING) {
        let qualification = DebugRegisterAccess::default()
            .with(DebugRegisterAccess::REGISTER, op.dst)
            .with(DebugRegisterAccess::FROM_DR, direction == Direction::From)
            .with(DebugRegisterAccess::GPR, register_number(op.src) as u8);
        return qualified_exit(Reason::MovDr, qualification.0);
    }
    let alias = matches!(op.dst, 4 | 5);
    if alias && cpu.cr4 & cr4::DE != 0 {
        return undefined();
    }
    cpu.require_cpl_0()?;
    if cpu.dr7 & dr7::GD != 0 {
        return Err(Exception::db(dr6::BD).into());
    }
    Ok(if alias { op.dst + 2 } else { op.dst })
}

fn read(cpu: &mut Cpu, op: &Op) -> Step {
    let number = checked(cpu, op, Direction::From)?;
    let value = match number {
        6 => cpu.state().dr6,
        7 => cpu.dr7,
        _ => cpu.state().dr[usize::from(number & 3)],
    };
    cpu.set_register_sized(op.src, if cpu.is_64() { 8 } else { 4 }, value);
    Ok(Flow::Next)
}

fn write(cpu: &mut Cpu, op: &Op) -> Step {
    let number = checked(cpu, op, Direction::To)?;
    let value = register::<u64>(cpu, op.src);
    let value = if cpu.is_64() { value } else { value & 0xffff_ffff };
    if number >= 6 && value >> 32 != 0 {
        return general_protection();
    }
    match number {
        6 => cpu.state().dr6 = (value & (dr6::B | dr6::BD | dr6::BS | dr6::BT)) | dr6::FIXED,
        7 => cpu.dr7 = (value & dr7::WRITABLE) | dr7::FIXED,
        _ => cpu.state().dr[usize::from(number & 3)] = value,
    }
    // Breakpoints change how accesses are made and blocks are run.
    cpu.refresh_context();
    cpu.refresh_attention();
    Ok(Flow::Leave)
}

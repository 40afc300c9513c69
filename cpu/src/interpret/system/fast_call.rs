//! SYSCALL, SYSRET, SYSENTER, SYSEXIT. SDM Vol. 3, "Fast System Calls in 64-Bit Mode"; Vol. 2, each instruction.

use super::{Flow, Step, finish, general_protection, handler, undefined};
use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::mmu::access::is_canonical;
use crate::segment::is_null;
use crate::state::Cpu;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::arch::{efer, rflags};
use vmcs12::cpu_state::gpr::{RCX, RDX, RSP};

use SegmentRegister::{Cs, Ss};

const R11: usize = 11;
/// Fields of IA32_STAR: the selector bases of SYSCALL and SYSRET.
const STAR_SYSCALL: u32 = 32;
const STAR_SYSRET: u32 = 48;

pub(super) fn select(d: &Decoding<'_>, _: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    Some(Selected::end(match d.inst.mnemonic() {
        Syscall => handler!(syscall),
        Sysret => handler!(sysret::<false>),
        Sysretq => handler!(sysret::<true>),
        Sysenter => handler!(sysenter),
        Sysexit => handler!(sysexit::<false>),
        Sysexitq => handler!(sysexit::<true>),
        _ => return None,
    }))
}

/// Size of the code segment that is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Code {
    Bits32,
    Bits64,
}

fn flat(selector: u16, kind: u8, cpl: u8) -> Segment {
    let rights = AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, true)
        .with(AccessRights::DPL, cpl)
        .with(AccessRights::P, true)
        .with(AccessRights::G, true);
    Segment { base: 0, limit: u32::MAX, rights, selector }
}

impl Cpu {
    /// Loads CS and SS with flat segments whatever the descriptor tables say, and CPL.
    fn load_flat(&mut self, code_selector: u16, stack_selector: u16, code: Code, cpl: u8) {
        let cs = flat(code_selector, 11, cpl);
        let long = code == Code::Bits64;
        let rights = cs.rights.with(AccessRights::L, long).with(AccessRights::DB, !long);
        self.set_segment(Cs, Segment { rights, ..cs });
        let ss = flat(stack_selector, 3, cpl);
        self.set_segment(Ss, Segment { rights: ss.rights.with(AccessRights::DB, true), ..ss });
        self.cpl = cpl;
        self.refresh_mode();
    }
}

fn syscall(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.is_64() || cpu.efer & efer::SCE == 0 {
        return undefined();
    }
    let (star, lstar, fmask) = (cpu.state().star, cpu.state().lstar, cpu.state().fmask);
    let stepping = cpu.rflags & rflags::TF != 0;
    let flags = cpu.full_rflags() & !rflags::RF;
    cpu.gpr[RCX] = cpu.next_rip(op);
    cpu.gpr[R11] = flags;
    let selector = (star >> STAR_SYSCALL) as u16 & !3;
    cpu.set_full_rflags(flags & !fmask);
    cpu.load_flat(selector, selector.wrapping_add(8), Code::Bits64, 0);
    cpu.trap_suppressed = stepping && cpu.rflags & rflags::TF == 0;
    Ok(Flow::To(lstar))
}

fn sysret<const WIDE: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    if !cpu.is_64() || cpu.efer & efer::SCE == 0 {
        return undefined();
    }
    cpu.require_cpl_0()?;
    let rip = if WIDE { cpu.gpr[RCX] } else { cpu.gpr[RCX] & 0xffff_ffff };
    if !is_canonical(rip) {
        return general_protection();
    }
    let base = (cpu.state().star >> STAR_SYSRET) as u16;
    let (selector, code) = if WIDE { (base.wrapping_add(16), Code::Bits64) } else { (base, Code::Bits32) };
    let flags = cpu.gpr[R11] & rflags::ALL & !(rflags::RF | rflags::VM);
    cpu.set_full_rflags(flags);
    cpu.load_flat(selector | 3, base.wrapping_add(8) | 3, code, 3);
    Ok(Flow::To(rip))
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Step {
    let (selector, stack, rip) = cpu.sysenter;
    if !cpu.protected() || is_null(selector as u16) {
        return general_protection();
    }
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let selector = selector as u16 & !3;
    let code = if long { Code::Bits64 } else { Code::Bits32 };
    cpu.set_full_rflags(cpu.full_rflags() & !(rflags::VM | rflags::IF | rflags::RF));
    cpu.load_flat(selector, selector.wrapping_add(8), code, 0);
    cpu.gpr[RSP] = stack & mask;
    Ok(Flow::To(rip & mask))
}

fn sysexit<const WIDE: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let selector = cpu.sysenter.0 as u16;
    if !cpu.protected() || cpu.cpl != 0 || is_null(selector) {
        return general_protection();
    }
    let (rip, stack) = (cpu.gpr[RDX], cpu.gpr[RCX]);
    if WIDE && !(is_canonical(rip) && is_canonical(stack)) {
        return general_protection();
    }
    let mask = if WIDE { u64::MAX } else { 0xffff_ffff };
    let (by, code) = if WIDE { (32, Code::Bits64) } else { (16, Code::Bits32) };
    let selector = selector.wrapping_add(by) | 3;
    cpu.load_flat(selector, selector.wrapping_add(8), code, 3);
    cpu.gpr[RSP] = stack & mask;
    Ok(Flow::To(rip & mask))
}

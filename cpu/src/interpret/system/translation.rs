//! INVLPG and INVPCID. SDM Vol. 2, "INVLPG", "INVPCID—Invalidate Process-Context Identifier".

use super::{
    End, Flow, Step, displacement, done, finish, general_protection, handler, memory_information,
    qualified_exit, register_number, undefined,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::interpret::operand::register;
use crate::mmu::Kind;
use crate::mmu::access::is_canonical;
use crate::state::Cpu;
use vmcs12::arch::cr::{cr3, cr4};
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::control::{ENABLE_INVPCID, INVLPG_EXITING};
use vmcs12::exit::Reason;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    Some(Selected::end(match d.inst.mnemonic() {
        Invlpg => handler!(invlpg),
        Invpcid => {
            op.dst = register_offset(d.inst.op0_register());
            handler!(invpcid)
        }
        _ => return None,
    }))
}

impl Cpu {
    /// The linear address of an offset, without any of a segment's checks.
    pub(super) fn unchecked_linear(&self, register: SegmentRegister, offset: u64) -> u64 {
        let base = self.segment(register).base;
        match (self.is_64(), register) {
            (true, SegmentRegister::Fs | SegmentRegister::Gs) => base.wrapping_add(offset),
            (true, _) => offset,
            (false, _) => base.wrapping_add(offset) & 0xffff_ffff,
        }
    }
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    let register = SegmentRegister::ALL[usize::from(op.segment)];
    let linear = cpu.unchecked_linear(register, cpu.effective_address(op));
    if cpu.controls.has(INVLPG_EXITING) {
        return qualified_exit(Reason::Invlpg, linear);
    }
    if is_canonical(linear) || !cpu.is_64() {
        cpu.flush_page(linear);
    }
    Ok(Flow::Leave)
}

fn invpcid(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.controls.has(ENABLE_INVPCID) {
        return undefined();
    }
    cpu.require_cpl_0()?;
    if cpu.controls.has(INVLPG_EXITING) {
        let information = memory_information(op) | register_number(op.dst) << 28;
        let qualification = displacement(cpu, op);
        return Err(End::Exit { reason: Reason::Invpcid, qualification, information });
    }
    let kind = register::<u64>(cpu, op.dst) & if cpu.is_64() { u64::MAX } else { 0xffff_ffff };
    let mut bytes = [0; 16];
    let linear = cpu.operand_linear(op, bytes.len(), Kind::Read)?;
    done(cpu.read_bytes(op, linear, &mut bytes))?;
    let (low, high) = bytes.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    let (pcid, address) = (word(low), word(high));
    if kind > 3 || pcid & !cr3::PCID != 0 {
        return general_protection();
    }
    let without_pcids = cpu.cr4 & cr4::PCIDE == 0 && pcid != 0;
    match kind {
        0 if without_pcids || !is_canonical(address) => return general_protection(),
        1 if without_pcids => return general_protection(),
        0 => cpu.flush_pcid_page(pcid as u16, address),
        1 => cpu.flush_pcid(pcid as u16),
        2 => cpu.flush_all(),
        _ => cpu.flush_retaining_globals(),
    }
    Ok(Flow::Leave)
}

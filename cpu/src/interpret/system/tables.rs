//! Descriptor tables, the task register, and looks at descriptors. SDM Vol. 2, "LGDT/LIDT", "SGDT", "SIDT", "LLDT",
//! "LTR", "SLDT", "STR", "LAR", "LSL", "VERR/VERW", "ARPL".

use super::{
    End, Flow, MEMORY, Step, displacement, done, finish, general_protection, handler, memory_information,
    register_number, set_either,
};
use crate::block::Op;
use crate::decode::{Decoding, Selected, register_offset};
use crate::flags::Status;
use crate::interpret::operand::{register, set_register};
use crate::mmu::access::is_canonical;
use crate::mmu::{Fault, Kind};
use crate::segment::{Descriptor, Entry, in_ldt, is_null, kind, rpl, selector_code, unusable};
use crate::state::Cpu;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::{Exception, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::control::DESCRIPTOR_TABLE_EXITING;
use vmcs12::exit::Reason;

use SegmentRegister::{Ldtr, Tr};

/// Instruction identity, bits 29:28 of the instruction information.
const IDENTITY_SHIFT: u32 = 28;
/// Operand size, bit 11 of the instruction information of LGDT, LIDT, SGDT and SIDT.
const OPERAND_SIZE: u32 = 1 << 11;
/// Register form, bit 10, and the register, bits 6:3, of LLDT, LTR, SLDT and STR.
const REGISTER_FORM: u32 = 1 << 10;
const REGISTER_SHIFT: u32 = 3;

/// Set in [`Op::imm`]: the operand size is not 16 bits.
const WIDE: u64 = 1 << 8;
/// LGDT and LIDT with 16-bit operand size load 24 bits of base.
const BASE_24: u64 = 0xff_ffff;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::{Code::*, Mnemonic::*};
    let inst = d.inst;
    let wide = !matches!(inst.code(), Sgdt_m1632_16 | Sidt_m1632_16 | Lgdt_m1632_16 | Lidt_m1632_16);
    let register_size = |i: u32| inst.op_register(i).size() as u64;
    // dst is the identity.
    let (identity, handler) = match inst.mnemonic() {
        Sgdt => (0, handler!(store_table)),
        Sidt => (1, handler!(store_table)),
        Lgdt => (2, handler!(load_table)),
        Lidt => (3, handler!(load_table)),
        Sldt => (0, handler!(store_selector)),
        Str => (1, handler!(store_selector)),
        Lldt => (2, handler!(lldt)),
        Ltr => (3, handler!(ltr)),
        Lar => return Some(look(d, op, handler!(lar))),
        Lsl => return Some(look(d, op, handler!(lsl))),
        Verr => return Some(look(d, op, handler!(verr))),
        Verw => return Some(look(d, op, handler!(verw))),
        Arpl => {
            set_either(d, op, 0);
            op.dst = register_offset(inst.op1_register());
            return Some(Selected::next(handler!(arpl)));
        }
        _ => return None,
    };
    op.dst = identity;
    match inst.mnemonic() {
        Sgdt | Sidt | Lgdt | Lidt => op.imm = if wide { WIDE } else { 0 },
        _ => {
            set_either(d, op, 0);
            op.imm = if op.extra & MEMORY != 0 { 2 } else { register_size(0) };
        }
    }
    Some(Selected::next(handler))
}

/// LAR and LSL have a destination before the selector; VERR and VERW have not.
fn look(d: &Decoding<'_>, op: &mut Op, handler: crate::block::Handler) -> Selected {
    let last = d.inst.op_count() - 1;
    set_either(d, op, last);
    if last == 1 {
        op.dst = register_offset(d.inst.op0_register());
        op.imm = d.inst.op0_register().size() as u64;
    }
    Selected::next(handler)
}

/// User-mode instruction prevention. SDM Vol. 3, "CR4.UMIP".
fn check_umip(cpu: &Cpu) -> Result<(), End> {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 { general_protection() } else { Ok(()) }
}

fn exit_table(cpu: &Cpu, op: &Op) -> Result<(), End> {
    if !cpu.controls.has(DESCRIPTOR_TABLE_EXITING) {
        return Ok(());
    }
    let size = if op.imm & WIDE != 0 { OPERAND_SIZE } else { 0 };
    let information = memory_information(op) | size | u32::from(op.dst) << IDENTITY_SHIFT;
    Err(End::Exit { reason: Reason::GdtrIdtrAccess, qualification: displacement(cpu, op), information })
}

fn exit_selector(cpu: &Cpu, op: &Op) -> Result<(), End> {
    if !cpu.controls.has(DESCRIPTOR_TABLE_EXITING) {
        return Ok(());
    }
    let identity = u32::from(op.dst) << IDENTITY_SHIFT;
    let (qualification, operand) = if op.extra & MEMORY != 0 {
        (displacement(cpu, op), memory_information(op))
    } else {
        (0, REGISTER_FORM | register_number(op.src) << REGISTER_SHIFT)
    };
    Err(End::Exit { reason: Reason::LdtrTrAccess, qualification, information: operand | identity })
}

fn store_table(cpu: &mut Cpu, op: &Op) -> Step {
    check_umip(cpu)?;
    exit_table(cpu, op)?;
    let (base, limit) = if op.dst & 1 == 0 { cpu.gdtr } else { cpu.idtr };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&(limit as u16).to_le_bytes());
    bytes[2..].copy_from_slice(&base.to_le_bytes());
    let size = if cpu.is_64() { 10 } else { 6 };
    let linear = cpu.operand_linear(op, size, Kind::Write)?;
    done(cpu.write_bytes(op, linear, &bytes[..size]))?;
    Ok(Flow::Next)
}

fn load_table(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl_0()?;
    exit_table(cpu, op)?;
    let size = if cpu.is_64() { 10 } else { 6 };
    let linear = cpu.operand_linear(op, size, Kind::Read)?;
    let mut bytes = [0; 10];
    done(cpu.read_bytes(op, linear, &mut bytes[..size]))?;
    let limit = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut base = [0; 8];
    base.copy_from_slice(&bytes[2..]);
    let base = u64::from_le_bytes(base);
    if !is_canonical(base) {
        return general_protection();
    }
    let base = if op.imm & WIDE == 0 && !cpu.is_64() { base & BASE_24 } else { base };
    if op.dst & 1 == 0 {
        cpu.gdtr = (base, limit);
    } else {
        cpu.idtr = (base, limit);
    }
    Ok(Flow::Next)
}

fn store_selector(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_protected()?;
    check_umip(cpu)?;
    exit_selector(cpu, op)?;
    let register = if op.dst & 1 == 0 { Ldtr } else { Tr };
    let selector = cpu.segment(register).selector;
    cpu.write_either_16(op, u64::from(selector))?;
    Ok(Flow::Next)
}

/// The system segment of a selector: 16 bytes in IA-32e mode.
fn system_segment(cpu: &mut Cpu, selector: u16, kinds: &[u8]) -> Result<(Entry, Segment), End> {
    let code = selector_code(selector);
    if in_ldt(selector) {
        return Err(Exception::gp(code).into());
    }
    let entry = cpu.descriptor(selector, Exception::gp, 0)?;
    let descriptor = entry.descriptor;
    if !descriptor.system_kind().is_some_and(|kind| kinds.contains(&kind)) {
        return Err(Exception::gp(code).into());
    }
    if !descriptor.get(Descriptor::P) {
        return Err(Exception::np(code).into());
    }
    let mut segment = descriptor.segment(selector);
    if cpu.long_mode() {
        segment.base |= cpu.descriptor_high(&entry, Exception::gp, 0)? << 32;
        if !is_canonical(segment.base) {
            return Err(Exception::gp(code).into());
        }
    }
    Ok((entry, segment))
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_protected()?;
    cpu.require_cpl_0()?;
    exit_selector(cpu, op)?;
    let selector = cpu.read_either::<u16>(op)?;
    let segment =
        if is_null(selector) { unusable(selector) } else { system_segment(cpu, selector, &[kind::LDT])?.1 };
    cpu.set_segment(Ldtr, segment);
    Ok(Flow::Next)
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_protected()?;
    cpu.require_cpl_0()?;
    exit_selector(cpu, op)?;
    let selector = cpu.read_either::<u16>(op)?;
    if is_null(selector) {
        return general_protection();
    }
    let kinds: &[u8] = if cpu.long_mode() { &[kind::TSS] } else { &[kind::TSS, kind::TSS_16] };
    let (entry, segment) = system_segment(cpu, selector, kinds)?;
    cpu.mark(&entry, kind::BUSY)?;
    let busy = segment.rights.get(AccessRights::TYPE) | kind::BUSY;
    cpu.set_segment(Tr, Segment { rights: segment.rights.with(AccessRights::TYPE, busy), ..segment });
    Ok(Flow::Next)
}

impl Cpu {
    /// Changes ZF alone.
    fn set_zero(&mut self, zero: bool) {
        let others = self.status.bits() & !rflags::ZF;
        self.status = Status::from_bits(others | if zero { rflags::ZF } else { 0 });
    }

    /// The descriptor that LAR, LSL, VERR or VERW may look at, if the selector names one.
    fn seen_descriptor(&mut self, op: &Op) -> Result<Option<Descriptor>, End> {
        self.require_protected()?;
        let selector = self.read_either::<u16>(op)?;
        if is_null(selector) {
            return Ok(None);
        }
        let entry = match self.descriptor(selector, Exception::gp, 0) {
            Ok(entry) => entry,
            Err(Fault::Exception(exception)) if exception.vector == vector::GP => return Ok(None),
            Err(fault) => return Err(fault.into()),
        };
        let descriptor = entry.descriptor;
        let dpl = descriptor.get(Descriptor::DPL);
        let visible = descriptor.is_conforming() || (self.cpl <= dpl && rpl(selector) <= dpl);
        Ok(visible.then_some(descriptor))
    }
}

fn lar(cpu: &mut Cpu, op: &Op) -> Step {
    /// Bits of the descriptor's high half that LAR gives.
    const VISIBLE: u64 = 0x00f0_ff00;
    let long = cpu.long_mode();
    let known = |descriptor: &Descriptor| match descriptor.system_kind() {
        None | Some(kind::LDT | kind::TSS | kind::TSS_BUSY | kind::CALL_GATE) => true,
        Some(kind::TSS_16 | kind::TSS_16_BUSY | kind::CALL_GATE_16 | kind::TASK_GATE) => !long,
        Some(_) => false,
    };
    let found = cpu.seen_descriptor(op)?.filter(known);
    if let Some(descriptor) = found {
        cpu.set_register_sized(op.dst, op.imm, descriptor.0 >> 32 & VISIBLE);
    }
    cpu.set_zero(found.is_some());
    Ok(Flow::Next)
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Step {
    let long = cpu.long_mode();
    let known = |descriptor: &Descriptor| match descriptor.system_kind() {
        None | Some(kind::LDT | kind::TSS | kind::TSS_BUSY) => true,
        Some(kind::TSS_16 | kind::TSS_16_BUSY) => !long,
        Some(_) => false,
    };
    let found = cpu.seen_descriptor(op)?.filter(known);
    if let Some(descriptor) = found {
        cpu.set_register_sized(op.dst, op.imm, u64::from(descriptor.limit()));
    }
    cpu.set_zero(found.is_some());
    Ok(Flow::Next)
}

fn verr(cpu: &mut Cpu, op: &Op) -> Step {
    let found = cpu.seen_descriptor(op)?;
    cpu.set_zero(found.is_some_and(Descriptor::is_readable));
    Ok(Flow::Next)
}

fn verw(cpu: &mut Cpu, op: &Op) -> Step {
    let found = cpu.seen_descriptor(op)?;
    cpu.set_zero(found.is_some_and(Descriptor::is_writable));
    Ok(Flow::Next)
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_protected()?;
    let least = register::<u16>(cpu, op.dst) & 3;
    let selector = if op.extra & MEMORY != 0 {
        let linear = cpu.operand_linear(op, 2, Kind::Write)?;
        done(cpu.probe_write(op, linear, 2))?;
        done(cpu.load::<u16>(op, linear))?
    } else {
        register::<u16>(cpu, op.src)
    };
    let raised = selector & 3 < least;
    if raised {
        let selector = (selector & !3) | least;
        if op.extra & MEMORY != 0 {
            let linear = cpu.operand_linear(op, 2, Kind::Write)?;
            done(cpu.store(op, linear, selector))?;
        } else {
            set_register(cpu, op.src, selector);
        }
    }
    cpu.set_zero(raised);
    Ok(Flow::Next)
}

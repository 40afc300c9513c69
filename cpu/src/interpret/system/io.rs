//! IN, OUT, INS, OUTS. SDM Vol. 1, "Protected-Mode I/O"; Vol. 3, "I/O-Bitmap Addresses", "Exit Qualification for I/O
//! Instructions".
//!
//! No port answers inside the processor: what does not exit reads all ones and drops writes.

use super::{End, Flow, Step, address_size_information, done, finish, general_protection, handler};
use crate::block::Op;
use crate::decode::{Decoding, Selected, address_size};
use crate::interpret::operand::{address_mask, extra, set_register};
use crate::mmu::{Fault, Kind};
use crate::state::Cpu;
use iced_x86::{Code, Mnemonic};
use vmcs12::addr::Physical;
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::control::{UNCONDITIONAL_IO_EXITING, USE_IO_BITMAPS};
use vmcs12::cpu_state::gpr::{RAX, RCX, RDI, RDX, RSI};
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::IoInstruction;
use vmcs12::field::table::*;

/// Set in [`Op::imm`]: the low 16 bits are the port; otherwise DX is.
const IMMEDIATE: u64 = 1 << 16;
/// Where the 32-bit TSS holds the offset of its I/O bitmap.
const MAP_BASE: u64 = 0x66;
/// Ports that one I/O bitmap covers.
const BITMAP_PORTS: u16 = 0x8000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use Code::*;
    let inst = d.inst;
    let (size, handler) = match inst.code() {
        In_AL_imm8 | In_AL_DX => (1, handler!(input)),
        In_AX_imm8 | In_AX_DX => (2, handler!(input)),
        In_EAX_imm8 | In_EAX_DX => (4, handler!(input)),
        Out_imm8_AL | Out_DX_AL => (1, handler!(output)),
        Out_imm8_AX | Out_DX_AX => (2, handler!(output)),
        Out_imm8_EAX | Out_DX_EAX => (4, handler!(output)),
        Insb_m8_DX => (1, handler!(ins)),
        Insw_m16_DX => (2, handler!(ins)),
        Insd_m32_DX => (4, handler!(ins)),
        Outsb_DX_m8 => (1, handler!(outs)),
        Outsw_DX_m16 => (2, handler!(outs)),
        Outsd_DX_m32 => (4, handler!(outs)),
        _ => return None,
    };
    op.dst = size;
    op.imm = match inst.code() {
        In_AL_imm8 | In_AX_imm8 | In_EAX_imm8 | Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX => {
            u64::from(inst.immediate8()) | IMMEDIATE
        }
        _ => 0,
    };
    if matches!(inst.mnemonic(), Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd) {
        op.segment = SegmentRegister::Es as u8;
    }
    debug_assert!(matches!(address_size(inst), 16 | 32 | 64));
    Some(Selected::end(handler))
}

fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.imm & IMMEDIATE != 0 { op.imm as u16 } else { cpu.gpr[RDX] as u16 }
}

impl Cpu {
    /// SDM Vol. 1, "I/O Privilege Level", "I/O Permission Bit Map".
    fn check_port(&mut self, port: u16, size: u8) -> Result<(), End> {
        if !self.protected() || (self.cpl <= self.iopl() && !self.virtual_8086()) {
            return Ok(());
        }
        if self.port_permitted(port, size)? { Ok(()) } else { general_protection() }
    }

    fn port_permitted(&mut self, port: u16, size: u8) -> Result<bool, Fault> {
        let tr = *self.segment(SegmentRegister::Tr);
        let limit = u64::from(tr.limit);
        // Only the 32-bit and the 64-bit TSS have a map.
        if !tr.rights.is_usable() || tr.rights.get(AccessRights::TYPE) & 8 == 0 || MAP_BASE + 1 > limit {
            return Ok(false);
        }
        let map = u64::from(u16::from_le_bytes(self.read_system::<2>(tr.base.wrapping_add(MAP_BASE))?));
        let byte = map + u64::from(port / 8);
        if byte + 1 > limit {
            return Ok(false);
        }
        let bits = u16::from_le_bytes(self.read_system::<2>(tr.base.wrapping_add(byte))?);
        Ok(bits >> (port % 8) & ((1 << size) - 1) == 0)
    }

    /// Does an access exit? With bitmaps, one that wraps around the port space always does.
    fn intercepts_port(&mut self, port: u16, size: u8) -> bool {
        if !self.controls.has(USE_IO_BITMAPS) {
            return self.controls.has(UNCONDITIONAL_IO_EXITING);
        }
        let bitmaps = [self.vmcs().get(ADDRESS_OF_IO_BITMAP_A), self.vmcs().get(ADDRESS_OF_IO_BITMAP_B)];
        (0..u16::from(size)).any(|i| {
            let Some(port) = port.checked_add(i) else { return true };
            let (bitmap, bit) = (bitmaps[usize::from(port / BITMAP_PORTS)], port % BITMAP_PORTS);
            let mut byte = [0];
            self.memory.read(bitmap.plus(u64::from(bit / 8)), &mut byte);
            byte[0] >> (bit % 8) & 1 != 0
        })
    }
}

fn qualification(cpu: &Cpu, op: &Op, direction: Direction) -> IoInstruction {
    IoInstruction::default()
        .with(IoInstruction::SIZE_MINUS_1, op.dst - 1)
        .with(IoInstruction::IN, direction == Direction::In)
        .with(IoInstruction::IMMEDIATE, op.imm & IMMEDIATE != 0)
        .with(IoInstruction::PORT, port(cpu, op))
}

/// What precedes the access of IN and OUT.
fn check(cpu: &mut Cpu, op: &Op, direction: Direction) -> Result<(), End> {
    let port = port(cpu, op);
    cpu.check_port(port, op.dst)?;
    if !cpu.intercepts_port(port, op.dst) {
        return Ok(());
    }
    let qualification = qualification(cpu, op, direction).0;
    Err(End::Exit { reason: Reason::IoInstruction, qualification, information: 0 })
}

fn input(cpu: &mut Cpu, op: &Op) -> Step {
    check(cpu, op, Direction::In)?;
    let accumulator = RAX as u8 * 8;
    match op.dst {
        1 => set_register(cpu, accumulator, u8::MAX),
        2 => set_register(cpu, accumulator, u16::MAX),
        _ => set_register(cpu, accumulator, u32::MAX),
    }
    Ok(Flow::Leave)
}

fn output(cpu: &mut Cpu, op: &Op) -> Step {
    check(cpu, op, Direction::Out)?;
    Ok(Flow::Leave)
}

fn ins(cpu: &mut Cpu, op: &Op) -> Step {
    string(cpu, op, Direction::In)
}

fn outs(cpu: &mut Cpu, op: &Op) -> Step {
    string(cpu, op, Direction::Out)
}

fn repeats(op: &Op) -> bool {
    op.extra & (extra::REP | extra::REPNE) != 0
}

/// One iteration of INS or OUTS.
fn string(cpu: &mut Cpu, op: &Op, direction: Direction) -> Step {
    let mask = address_mask(op);
    if repeats(op) && cpu.gpr[RCX] & mask == 0 {
        return Ok(Flow::Leave);
    }
    let index = if direction == Direction::In { RDI } else { RSI };
    let offset = cpu.gpr[index] & mask;
    let port = port(cpu, op);
    cpu.check_port(port, op.dst)?;
    if cpu.intercepts_port(port, op.dst) {
        return string_exit(cpu, op, direction, offset);
    }
    let kind = if direction == Direction::In { Kind::Write } else { Kind::Read };
    let linear = done(cpu.segmented(op, op.segment, offset, usize::from(op.dst), kind))?;
    let mut bytes = [0xff; 4];
    let bytes = &mut bytes[..usize::from(op.dst)];
    match direction {
        Direction::In => done(cpu.write_bytes(op, linear, bytes))?,
        Direction::Out => done(cpu.read_bytes(op, linear, bytes))?,
    }
    let step = u64::from(op.dst);
    let by = if cpu.rflags & rflags::DF != 0 { step.wrapping_neg() } else { step };
    advance(cpu, index, by, mask);
    if !repeats(op) {
        return Ok(Flow::Leave);
    }
    advance(cpu, RCX, u64::MAX, mask);
    let again = cpu.gpr[RCX] & mask != 0;
    Ok(if again { Flow::To(cpu.rip_of(op)) } else { Flow::Leave })
}

/// Adds to a register in the address size.
fn advance(cpu: &mut Cpu, register: usize, by: u64, mask: u64) {
    let value = cpu.gpr[register].wrapping_add(by);
    cpu.gpr[register] =
        if mask == 0xffff { (cpu.gpr[register] & !mask) | (value & mask) } else { value & mask };
}

/// The exit of INS and OUTS comes before the segment's checks.
fn string_exit(cpu: &mut Cpu, op: &Op, direction: Direction, offset: u64) -> Step {
    let register = SegmentRegister::ALL[usize::from(op.segment)];
    let linear = cpu.unchecked_linear(register, offset);
    let (rcx, rsi, rdi, rip) = (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI], cpu.rip_of(op));
    let vmcs = cpu.vmcs();
    vmcs.set(GUEST_LINEAR_ADDRESS, linear);
    for (field, value) in [(IO_RCX, rcx), (IO_RSI, rsi), (IO_RDI, rdi), (IO_RIP, rip)] {
        vmcs.set(field, value);
    }
    let qualification = qualification(cpu, op, direction)
        .with(IoInstruction::STRING, true)
        .with(IoInstruction::REP, repeats(op));
    let information = address_size_information(op) | u32::from(op.segment) << 15;
    Err(End::Exit { reason: Reason::IoInstruction, qualification: qualification.0, information })
}

//! The state that a random instruction starts from: random, but its operands lie in the window.

use super::flags;
use super::form::{Instance, fixed_target, number};
use super::layout::*;
use super::mode::Mode;
use super::random::Random;
use super::state::Registers;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vmcs12::arch::rflags;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Where an instruction starts.
pub struct Case {
    pub registers: Registers,
    /// Offset in the data of what is written there first, as far as there is room, and the bytes.
    pub patch: Option<(usize, [u8; 8])>,
    /// Where in the template the data pages' bytes begin.
    pub data: usize,
}

/// A random linear address for an operand: mostly around the page boundary, sometimes where it faults.
fn target(random: &mut Random) -> u64 {
    let around = MIDDLE - 128 + random.below(256);
    match random.below(32) {
        0 => DATA + DATA_LEN as u64 - random.below(20),
        1 => DATA - 8 + random.below(8),
        2 => READ_ONLY + random.below(0x1000 - 16),
        3 => 0x8000_0000_0000_0000 | random.next() >> 1,
        4 => 0x7fff_ffff_fff8 + random.below(16),
        5..16 => around & !15,
        16..24 => around & !7,
        _ => around,
    }
}

/// The target, or one that a 32-bit address can reach.
fn reachable(target: u64) -> u64 {
    Mode::Bits32.reachable(target)
}

fn stack(random: &mut Random) -> u64 {
    match random.below(24) {
        0 => DATA + random.below(24),
        1 => DATA + DATA_LEN as u64 - random.below(24),
        2 => READ_ONLY + 0x800,
        3 => 0x8000_0000_0000_0000 | random.next() >> 1,
        4 => MIDDLE - 128 + random.below(256),
        _ => (MIDDLE - 128 + random.below(256)) & !7,
    }
}

/// Somewhere that an indirect branch may go: INT3 stands there.
fn landing(instance: &Instance, random: &mut Random) -> u64 {
    loop {
        let at = CODE + random.below(CODE_LEN as u64);
        if !(instance.rip..instance.rip + 16).contains(&at) {
            return at;
        }
    }
}

fn segment_base(inst: &Instruction, fs_base: u64) -> u64 {
    match inst.memory_segment() {
        Register::FS => fs_base,
        Register::GS => GS_BASE,
        _ => 0,
    }
}

/// Sets the registers of the memory operand so that it is at `at`; returns where it is.
fn aim(instance: &Instance, registers: &mut Registers, at: u64, fs_base: u64) -> u64 {
    let inst = &instance.inst;
    if let Some(fixed) = instance.fixed {
        for &(register, value) in &instance.pins {
            registers.gpr[register] = value;
        }
        return fixed;
    }
    let narrow = inst.memory_base().size() == 4;
    let at = if narrow { reachable(at) } else { at };
    let index = match inst.memory_index() {
        Register::None => 0,
        Register::AL => registers.gpr[RAX] & 0xff,
        register => registers.gpr[number(register)].wrapping_mul(u64::from(inst.memory_index_scale())),
    };
    let base = at
        .wrapping_sub(segment_base(inst, fs_base))
        .wrapping_sub(inst.memory_displacement64())
        .wrapping_sub(index);
    let place = &mut registers.gpr[number(inst.memory_base())];
    *place = if narrow { *place & !0xffff_ffff | base & 0xffff_ffff } else { base };
    at
}

/// The low `size` bytes at an address of the window.
fn peek(data: &[u8], at: u64, size: usize) -> Option<u64> {
    let offset = usize::try_from(at.checked_sub(DATA)?).ok()?;
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(data.get(offset..offset + size)?);
    Some(u64::from_le_bytes(bytes))
}

/// Puts a string instruction's or an implied operand's index registers into the window.
fn set_strings(instance: &Instance, registers: &mut Registers, random: &mut Random) {
    let inst = &instance.inst;
    for op in 0..inst.op_count() {
        let (register, narrow) = match inst.op_kind(op) {
            OpKind::MemorySegRSI => (RSI, false),
            OpKind::MemorySegESI => (RSI, true),
            OpKind::MemoryESRDI => (RDI, false),
            OpKind::MemoryESEDI => (RDI, true),
            _ => continue,
        };
        let base = if register == RSI && inst.segment_prefix() == Register::GS { GS_BASE } else { 0 };
        let wanted = if super::intel::faults_in_its_own_order(inst) && op == 1 {
            fixed_target(random)
        } else {
            target(random)
        };
        let at = if narrow { reachable(wanted) } else { wanted }.wrapping_sub(base);
        let place = &mut registers.gpr[register];
        *place = if narrow { *place & !0xffff_ffff | at & 0xffff_ffff } else { at };
        let repeats = inst.has_rep_prefix() || inst.has_repne_prefix();
        if repeats {
            let count = if random.one_in(40) { random.below(5000) } else { random.below(40) };
            let count = if super::intel::checks_ports_late(inst) { count | 1 } else { count };
            let high = if narrow { random.value() << 32 } else { 0 };
            registers.gpr[RCX] = high | count;
        }
    }
}

/// Is it a bit test whose bit offset is in a register and may reach beyond the operand?
pub fn is_bit_string(inst: &Instruction) -> bool {
    matches!(inst.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && inst.op0_kind() == OpKind::Memory
        && inst.op1_kind() == OpKind::Register
}

/// A bit offset in memory: near, so that the bit lies in the window, or anywhere.
fn set_bit_offset(instance: &Instance, registers: &mut Registers, random: &mut Random) {
    let inst = &instance.inst;
    if is_bit_string(inst) && !random.one_in(16) {
        let near = random.below(2048).wrapping_sub(1024);
        let size = inst.op1_register().size() as u32 * 8;
        let mask = u64::MAX >> (64 - size);
        let place = &mut registers.gpr[number(inst.op1_register())];
        *place = *place & !mask | near & mask;
    }
}

fn sign(value: u64) -> u64 {
    ((value as i64) >> 63) as u64
}

/// What an instruction needs to do more than fault or nothing.
fn favour(
    instance: &Instance,
    registers: &mut Registers,
    at: Option<u64>,
    data: &[u8],
    random: &mut Random,
) -> Option<(usize, [u8; 8])> {
    let inst = &instance.inst;
    let gpr = &mut registers.gpr;
    match inst.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if random.below(4) > 0 => {
            gpr[RDX] = if inst.mnemonic() == Mnemonic::Div { random.below(64) } else { sign(gpr[RAX]) };
            if random.one_in(2) {
                gpr[RAX] = random.value() & 0xff | gpr[RAX] & !0xffff;
            }
            if random.one_in(2) && inst.mnemonic() == Mnemonic::Idiv {
                gpr[RAX] = gpr[RAX] as i16 as u64;
                gpr[RDX] = sign(gpr[RAX]);
            }
        }
        Mnemonic::Cmpxchg if random.one_in(2) => {
            let (kind, register) = (inst.op0_kind(), inst.op0_register());
            if kind == OpKind::Memory {
                gpr[RAX] =
                    peek(data, at?, inst.memory_size().size())? | random.next() & 0xff00_0000_0000_0000;
                if inst.memory_size().size() == 8 {
                    gpr[RAX] = peek(data, at?, 8)?;
                }
            } else {
                let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
                let value = if high { gpr[number(register)] >> 8 } else { gpr[number(register)] };
                gpr[RAX] = value ^ if register.size() < 8 { random.next() << 32 } else { 0 };
            }
        }
        Mnemonic::Cmpxchg8b if random.one_in(2) => {
            gpr[RAX] = peek(data, at?, 4)? | random.next() << 32;
            gpr[RDX] = peek(data, at? + 4, 4)? | random.next() << 32;
        }
        Mnemonic::Cmpxchg16b if random.one_in(2) => {
            gpr[RAX] = peek(data, at?, 8)?;
            gpr[RDX] = peek(data, at? + 8, 8)?;
        }
        Mnemonic::Loop
        | Mnemonic::Loope
        | Mnemonic::Loopne
        | Mnemonic::Jrcxz
        | Mnemonic::Jecxz
        | Mnemonic::Jcxz
            if random.one_in(2) =>
        {
            gpr[RCX] = random.below(3) | if random.one_in(2) { random.next() << 32 } else { 0 };
        }
        Mnemonic::Bextr if random.one_in(2) => {
            gpr[number(inst.op2_register())] = random.below(80) | random.below(80) << 8 | random.next() << 16;
        }
        Mnemonic::Jmp | Mnemonic::Call => return set_indirect(instance, registers, at, random),
        Mnemonic::Ret => return patch(gpr[RSP], landing(instance, random)),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            // AC stays clear: the host's kernel and ours differ in what they check while it handles the trap.
            return patch(gpr[RSP], random.next() & !(rflags::TF | rflags::AC));
        }
        _ => {}
    }
    None
}

fn patch(at: u64, value: u64) -> Option<(usize, [u8; 8])> {
    let offset = usize::try_from(at.checked_sub(DATA)?).ok()?;
    (offset < DATA_LEN).then(|| (offset, value.to_le_bytes()))
}

fn set_indirect(
    instance: &Instance,
    registers: &mut Registers,
    at: Option<u64>,
    random: &mut Random,
) -> Option<(usize, [u8; 8])> {
    let landing = landing(instance, random);
    match instance.inst.op0_kind() {
        OpKind::Register => {
            registers.gpr[number(instance.inst.op0_register())] = landing;
            None
        }
        OpKind::Memory => patch(at?, landing),
        _ => None,
    }
}

/// Does an indirect branch take its target from the read-only page, where no landing stands? The host and Intel
/// differ in where they fault for a target that is not canonical, and any other may be mapped in the host.
fn is_wild(instance: &Instance, registers: &Registers, at: Option<u64>) -> bool {
    let from = match (instance.inst.mnemonic(), instance.inst.op0_kind()) {
        (Mnemonic::Jmp | Mnemonic::Call, OpKind::Memory) => at,
        (Mnemonic::Ret, _) => Some(registers.gpr[RSP]),
        _ => None,
    };
    from.is_some_and(|from| (READ_ONLY..READ_ONLY + 4096).contains(&from))
}

/// A random case for the instance; the data pages hold bytes of `template`. `None` if the instance hardly has one.
pub fn random_case(
    instance: &Instance,
    mode: Mode,
    template: &[u8],
    random: &mut Random,
    fs_base: u64,
) -> Option<Case> {
    const ATTEMPTS: usize = 20;
    if super::intel::wraps_below_zero(&instance.inst) {
        return None;
    }
    for _ in 0..ATTEMPTS {
        let mut registers = mode.fit(random.registers());
        let inst = &instance.inst;
        if inst.is_stack_instruction() || matches!(inst.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
            registers.gpr[RSP] = mode.reachable(stack(random));
            registers.gpr[RBP] = mode.reachable(stack(random));
        }
        if super::intel::commits_before_fault(inst) {
            registers.gpr[RSP] = fixed_target(random);
        }
        set_strings(instance, &mut registers, random);
        set_bit_offset(instance, &mut registers, random);
        let mut at = None;
        if instance.has_memory {
            // Whether the operand's own address is looked at before the bit offset is added is nowhere written.
            let wanted = if is_bit_string(inst) { reachable(target(random)) } else { target(random) };
            at = Some(aim(instance, &mut registers, wanted, fs_base));
        }
        let start = random.below((template.len() - DATA_LEN) as u64) as usize;
        let data = &template[start..start + DATA_LEN];
        let patch = favour(instance, &mut registers, at, data, random);
        if instance.has_memory {
            // What `favour` set may have been an address register.
            let wanted = at.expect("aimed above");
            aim(instance, &mut registers, wanted, fs_base);
        }
        registers = mode.fit(registers);
        if !is_wild(instance, &registers, at)
            && is_safe(instance, &registers)
            && !flags::result_is_undefined(inst, registers.gpr[RCX])
        {
            return Some(Case { registers, patch, data: start });
        }
    }
    None
}

/// Is nothing of the test's own process in reach? See [`BASE`].
fn is_safe(instance: &Instance, registers: &Registers) -> bool {
    let inst = &instance.inst;
    let stack = inst.is_stack_instruction();
    let inside = |at: u64| (DATA - 0x1000..READ_ONLY + 0x2000).contains(&at) || at >= 0x7fff_ffff_e000;
    // A stack instruction whose register operand moved the stack somewhere else.
    !stack || inside(registers.gpr[RSP])
}

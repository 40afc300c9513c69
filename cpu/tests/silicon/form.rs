//! The forms under test, and random instructions of a form.

use super::layout::*;
use super::mode::Mode;
use super::random::Random;
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic};
use iced_x86::{OpCodeOperandKind as K, OpKind, Register};

/// What is done with a form.
pub enum Fate {
    Run,
    /// Not an integer instruction: the test of the vector instructions runs it.
    Vector,
    Skip(&'static str),
}

fn is_vector(code: Code) -> bool {
    use CpuidFeature as F;
    let kinds = code.op_code().op_kinds();
    let registers = kinds.iter().any(|kind| {
        matches!(
            kind,
            K::mm_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::zmm_or_mem
                | K::mm_reg
                | K::mm_rm
                | K::xmm_reg
                | K::xmm_rm
                | K::xmm_vvvv
                | K::xmm_is4
                | K::ymm_reg
                | K::ymm_rm
                | K::ymm_vvvv
                | K::ymm_is4
                | K::st0
                | K::sti_opcode
                | K::k_reg
                | K::k_rm
                | K::k_vvvv
                | K::k_or_mem
                | K::bnd_reg
                | K::bnd_or_mem_mpx
                | K::tmm_reg
                | K::tmm_rm
                | K::seg_rDI
                | K::xmm_is5
                | K::ymm_is5
        )
    });
    registers
        || code.cpuid_features().iter().any(|feature| {
            matches!(
                feature,
                F::FPU
                    | F::FPU287
                    | F::FPU387
                    | F::FXSR
                    | F::MMX
                    | F::XSAVE
                    | F::XSAVEOPT
                    | F::XSAVEC
                    | F::XSAVES
                    | F::AVX
                    | F::AVX512F
                    | F::AMX_TILE
                    | F::D3NOW
            )
        })
        || matches!(code.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr | Mnemonic::Wait)
}

/// Extensions that are offered, beside the base.
fn is_offered(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::BMI1
            | F::BMI2
            | F::LZCNT
            | F::POPCNT
            | F::MOVBE
            | F::SSE4_2
            | F::FSGSBASE
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::SSE
            | F::SSE2
            | F::PREFETCHW
            | F::CLFSH
            | F::CLFLUSHOPT
            | F::CLWB
            | F::CET_IBT
    )
}

/// Is it an encoding of the reserved no-operations that an extension which is not offered has taken?
fn is_reserved_nop(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Cldemote | M::Rdsspd | M::Rdsspq | M::Prefetchwt1)
}

/// Why an instruction is not compared.
#[rustfmt::skip]
fn skipped(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let kinds = code.op_code().op_kinds();
    if kinds.iter().any(|kind| matches!(kind, K::farbr2_2 | K::farbr4_2)) {
        return Some("a far branch: needs the guest's descriptors");
    }
    if let Some(reason) = super::intel::differs(code) {
        return Some(reason);
    }
    if kinds.iter().any(|kind| matches!(kind, K::br16_1 | K::br16_2)) {
        return Some("a 16-bit branch: it leaves the window, and Intel's 64-bit mode ignores the prefix");
    }
    if kinds.iter().any(|kind| matches!(kind, K::cr_reg | K::dr_reg | K::tr_reg)) {
        return Some("a control or debug register");
    }
    Some(match code.mnemonic() {
        M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs     => "loads a segment register: needs descriptors",
        M::Pop if matches!(kinds, [K::es | K::ss | K::ds | K::fs | K::gs]) => "loads a segment register: needs descriptors",
        M::Mov if kinds.first() == Some(&K::seg_reg)   => "loads a segment register: needs descriptors",
        M::Lar | M::Lsl | M::Verr | M::Verw            => "reads descriptors",
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => "a system register; the host's kernel may emulate it (UMIP)",
        M::Jmp | M::Call if matches!(code, Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 | Code::Call_m1616
            | Code::Call_m1632 | Code::Call_m1664)     => "a far branch: needs the guest's descriptors",
        M::Retf | M::Iret | M::Iretd | M::Iretq        => "a far branch: needs the guest's descriptors",
        M::Int | M::Int1 | M::Syscall | M::Sysenter | M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq
                                                       => "enters or leaves the kernel",
        M::Bswap if code == Code::Bswap_r16            => "the result is undefined",
        M::Int3                                        => "ends every case",
        M::Cpuid | M::Rdtsc | M::Rdpmc | M::Rdtscp     => "the value is the processor's own",
        M::Loadall | M::Umov | M::Xbts | M::Ibts       => "no processor since the 486 has it",
        _ => return None,
    })
}

/// What is done with a form.
pub fn fate(code: Code, mode: Mode) -> Fate {
    let info = code.op_code();
    let exists = match mode {
        Mode::Bits64 => info.mode64() && info.intel_decoder64(),
        Mode::Bits32 => info.mode32() && info.intel_decoder32(),
    };
    if !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX) || !info.is_instruction() {
        return Fate::Vector;
    }
    if !exists {
        return Fate::Skip("not in this mode of Intel's");
    }
    if is_vector(code) {
        return Fate::Vector;
    }
    if let Some(reason) = skipped(code) {
        return Fate::Skip(reason);
    }
    let offered = code.cpuid_features().iter().all(|&feature| is_offered(feature));
    if !offered && !is_reserved_nop(code) {
        return Fate::Skip("an extension that is not offered");
    }
    Fate::Run
}

/// Which memory operands an instruction may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// Every form, with any registers: the case sets them.
    Any,
    /// RBX with a displacement, RIP-relative and absolute: instructions before may have changed the registers.
    Steady,
}

/// An instruction and what its case must arrange.
pub struct Instance {
    pub inst: Instruction,
    pub bytes: Vec<u8>,
    pub rip: u64,
    /// The linear address of an operand that no register moves.
    pub fixed: Option<u64>,
    /// Registers that a fixed operand's address needs.
    pub pins: Vec<(usize, u64)>,
    pub has_memory: bool,
}

/// Number of a general register of any width; AH…BH are not registers of an address.
pub fn number(register: Register) -> usize {
    register.full_register().number()
}

/// A random place for an operand that nothing moves.
pub fn fixed_target(random: &mut Random) -> u64 {
    (MIDDLE - 64 + random.below(128)) & !if random.one_in(2) { 7 } else { 0 }
}

struct Builder<'a> {
    inst: Instruction,
    random: &'a mut Random,
    rip: u64,
    fixed: Option<u64>,
    pins: Vec<(usize, u64)>,
    prefer_memory: bool,
    fs_base: u64,
    addressing: Addressing,
    mode: Mode,
}

impl Builder<'_> {
    fn byte_register(&mut self, op: u32) {
        let names = if self.mode == Mode::Bits64 { 20 } else { 8 };
        let register = Register::AL + self.random.below(names) as u32;
        self.register(op, register);
    }

    fn general(&mut self, op: u32, first: Register) {
        let register = first + self.random.below(self.mode.registers()) as u32;
        self.register(op, register);
    }

    fn register(&mut self, op: u32, register: Register) {
        self.inst.set_op_kind(op, OpKind::Register);
        self.inst.set_op_register(op, register);
    }

    /// Chooses the operand; `None` if the kind is unknown.
    fn operand(&mut self, op: u32, kind: K) -> Option<()> {
        match kind {
            K::mem => self.memory(op),
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem if self.prefer_memory => {
                self.memory(op)
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.byte_register(op),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => self.general(op, Register::AX),
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                self.general(op, Register::EAX);
            }
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                self.general(op, Register::RAX);
            }
            K::es => self.register(op, Register::ES),
            K::cs => self.register(op, Register::CS),
            K::ss => self.register(op, Register::SS),
            K::ds => self.register(op, Register::DS),
            K::al => self.register(op, Register::AL),
            K::cl => self.register(op, Register::CL),
            K::ax => self.register(op, Register::AX),
            K::dx => self.register(op, Register::DX),
            K::eax => self.register(op, Register::EAX),
            K::rax => self.register(op, Register::RAX),
            K::seg_reg => {
                let register = self.random.pick(&[
                    Register::ES,
                    Register::CS,
                    Register::SS,
                    Register::DS,
                    Register::FS,
                    Register::GS,
                ]);
                self.register(op, register);
            }
            K::fs => self.register(op, Register::FS),
            K::gs => self.register(op, Register::GS),
            K::mem_offs => self.absolute(op),
            K::seg_rSI | K::es_rDI | K::seg_rBX_al => self.implied(op, kind),
            K::br32_1 | K::br32_4 | K::br64_1 | K::br64_4 => self.branch(op, kind),
            _ => return self.immediate(op, kind),
        }
        Some(())
    }

    fn immediate(&mut self, op: u32, kind: K) -> Option<()> {
        let value = self.random.value();
        let (op_kind, value) = match kind {
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8 if op == 1 && self.inst.mnemonic() == Mnemonic::Enter => {
                (OpKind::Immediate8_2nd, value & 0xff)
            }
            K::imm8 => (OpKind::Immediate8, value & 0xff),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 => (OpKind::Immediate16, value & 0xffff),
            K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as u64),
            K::imm64 => (OpKind::Immediate64, value),
            _ => return None,
        };
        self.inst.set_op_kind(op, op_kind);
        match op_kind {
            OpKind::Immediate8 => self.inst.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => self.inst.set_immediate8_2nd(value as u8),
            OpKind::Immediate8to16 => self.inst.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => self.inst.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => self.inst.set_immediate8to64(value as i64),
            OpKind::Immediate16 => self.inst.set_immediate16(value as u16),
            OpKind::Immediate32 => self.inst.set_immediate32(value as u32),
            OpKind::Immediate32to64 => self.inst.set_immediate32to64(value as i64),
            _ => self.inst.set_immediate64(value),
        }
        Some(())
    }

    fn branch(&mut self, op: u32, kind: K) {
        // Nothing but INT3 stands around: the instruction itself is the one place not to land on.
        let target = loop {
            let target = if matches!(kind, K::br32_1 | K::br64_1) {
                self.rip - 100 + self.random.below(200)
            } else {
                CODE + self.random.below(CODE_LEN as u64)
            };
            if !(self.rip..self.rip + 16).contains(&target) {
                break target;
            }
        };
        match self.mode {
            Mode::Bits64 => {
                self.inst.set_op_kind(op, OpKind::NearBranch64);
                self.inst.set_near_branch64(target);
            }
            Mode::Bits32 => {
                self.inst.set_op_kind(op, OpKind::NearBranch32);
                self.inst.set_near_branch32(target as u32);
            }
        }
    }

    fn implied(&mut self, op: u32, kind: K) {
        let narrow = self.is_narrow(4);
        match (kind, narrow) {
            (K::seg_rSI, false) => self.inst.set_op_kind(op, OpKind::MemorySegRSI),
            (K::seg_rSI, true) => self.inst.set_op_kind(op, OpKind::MemorySegESI),
            (K::es_rDI, false) => self.inst.set_op_kind(op, OpKind::MemoryESRDI),
            (K::es_rDI, true) => self.inst.set_op_kind(op, OpKind::MemoryESEDI),
            (_, narrow) => {
                self.inst.set_op_kind(op, OpKind::Memory);
                self.inst.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
                self.inst.set_memory_index(Register::AL);
            }
        }
        if self.mode == Mode::Bits64 && self.random.one_in(8) {
            self.inst.set_segment_prefix(Register::GS);
        }
    }

    /// Is the address 32 bits wide, in 64-bit mode once in `n` times?
    fn is_narrow(&mut self, n: u64) -> bool {
        self.mode == Mode::Bits32 || self.random.one_in(n)
    }

    fn absolute(&mut self, op: u32) {
        let target = fixed_target(self.random);
        self.inst.set_op_kind(op, OpKind::Memory);
        let narrow = self.is_narrow(3);
        let base = self.segment(narrow);
        self.inst.set_memory_displ_size(if narrow { 4 } else { 8 });
        let offset = target.wrapping_sub(base);
        self.inst.set_memory_displacement64(if narrow { offset & 0xffff_ffff } else { offset });
        self.fixed = Some(target);
    }

    /// Chooses the segment; returns its base.
    fn segment(&mut self, narrow: bool) -> u64 {
        let bits_32 = self.mode == Mode::Bits32;
        match self.random.below(16) {
            0 | 1 if !bits_32 => {
                self.inst.set_segment_prefix(Register::GS);
                GS_BASE
            }
            2 if !narrow => {
                self.inst.set_segment_prefix(Register::FS);
                self.fs_base
            }
            3 => {
                let ignored = [Register::ES, Register::CS, Register::SS, Register::DS];
                self.inst.set_segment_prefix(self.random.pick(&ignored));
                0
            }
            _ => 0,
        }
    }

    /// RBX with a small displacement.
    fn steady_memory(&mut self) {
        let base = if self.mode == Mode::Bits64 { Register::RBX } else { Register::EBX };
        self.inst.set_memory_base(base);
        self.inst.set_memory_displ_size(1);
        let displacement = self.random.below(400) as i64 - 200;
        self.set_displacement(self.mode == Mode::Bits32, displacement as u64);
    }

    /// A ModR/M memory operand in any of its forms.
    fn memory(&mut self, op: u32) {
        self.inst.set_op_kind(op, OpKind::Memory);
        if self.addressing == Addressing::Steady && !self.random.one_in(4) {
            return self.steady_memory();
        }
        let narrow = self.is_narrow(6);
        let first = if narrow { Register::EAX } else { Register::RAX };
        let displacement_size = if narrow { 4 } else { 8 };
        self.inst.set_memory_displ_size(displacement_size);
        let form = if self.addressing == Addressing::Steady {
            6 + self.random.below(2)
        } else {
            self.random.below(8)
        };
        // A far segment base needs a 64-bit register to reach the window.
        let segment = if form < 5 {
            self.segment(narrow)
        } else if self.mode == Mode::Bits64 && self.random.one_in(8) {
            self.inst.set_segment_prefix(Register::GS);
            GS_BASE
        } else {
            0
        };
        let target = fixed_target(self.random);
        let scale = 1 << self.random.below(4);
        let index = loop {
            let index = self.random.below(self.mode.registers()) as u32;
            if index != 4 {
                break index;
            }
        };
        match form {
            0..=4 => {
                let base = loop {
                    let base = self.random.below(self.mode.registers()) as u32;
                    if base != index {
                        break base;
                    }
                };
                self.inst.set_memory_base(first + base);
                if form >= 3 {
                    self.inst.set_memory_index(first + index);
                    self.inst.set_memory_index_scale(scale);
                }
                let displacement = match self.random.below(3) {
                    0 => 0,
                    1 => self.random.next() as i8 as i64,
                    _ => i64::from(self.random.next() as i32),
                };
                self.inst.set_memory_displ_size(if displacement == 0 { 0 } else { 1 });
                self.set_displacement(narrow, displacement as u64);
            }
            5 => {
                let value = self.random.below(0x0800_0000);
                let offset = target.wrapping_sub(segment).wrapping_sub(value * u64::from(scale));
                self.inst.set_memory_index(first + index);
                self.inst.set_memory_index_scale(scale);
                self.set_displacement(narrow, offset);
                self.pins.push((index as usize, value));
                self.fixed = Some(target);
            }
            _ if form == 6 || self.mode == Mode::Bits32 => {
                self.set_displacement(narrow, target.wrapping_sub(segment));
                self.fixed = Some(target);
            }
            _ => {
                self.inst.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
                self.set_displacement(narrow, target.wrapping_sub(segment));
                self.fixed = Some(target);
            }
        }
    }

    fn set_displacement(&mut self, narrow: bool, value: u64) {
        self.inst.set_memory_displacement64(if narrow { value & 0xffff_ffff } else { value });
    }

    fn prefixes(&mut self) {
        let info = self.inst.code().op_code();
        let memory = self.inst.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && memory && self.random.one_in(3) {
            self.inst.set_has_lock_prefix(true);
        }
        let string = info.can_use_rep_prefix() || info.can_use_repne_prefix();
        if string && self.random.below(3) > 0 {
            if info.can_use_repne_prefix() && self.random.one_in(2) {
                self.inst.set_has_repne_prefix(true);
            } else {
                self.inst.set_has_rep_prefix(true);
            }
        }
    }
}

/// A random instruction of the form at a random place; `None` if no encoding of it decodes as the form.
pub fn instance(code: Code, mode: Mode, random: &mut Random, fs_base: u64) -> Option<Instance> {
    let rip =
        if random.one_in(4) { CODE + 0x1000 - 1 - random.below(12) } else { CODE + 0x800 + random.below(64) };
    instance_at(code, mode, random, rip, fs_base, Addressing::Any)
}

/// A random instruction of the form at this place; `None` if no encoding of it decodes as the form.
pub fn instance_at(
    code: Code,
    mode: Mode,
    random: &mut Random,
    rip: u64,
    fs_base: u64,
    addressing: Addressing,
) -> Option<Instance> {
    const ATTEMPTS: usize = 200;
    for _ in 0..ATTEMPTS {
        let prefer_memory = random.one_in(2);
        let mut inst = Instruction::default();
        inst.set_code(code);
        let mut builder = Builder {
            inst,
            random,
            rip,
            fixed: None,
            pins: Vec::new(),
            prefer_memory,
            fs_base,
            addressing,
            mode,
        };
        for (op, &kind) in code.op_code().op_kinds().iter().enumerate() {
            builder.operand(op as u32, kind)?;
        }
        builder.prefixes();
        let (inst, fixed, pins) = (builder.inst, builder.fixed, builder.pins);
        let mut encoder = Encoder::new(mode.bits());
        // AH…BH with a REX prefix, and addresses that a form cannot have: choose again.
        if encoder.encode(&inst, rip).is_err() {
            continue;
        }
        let bytes = encoder.take_buffer();
        let decoded = Decoder::with_ip(mode.bits(), &bytes, rip, DecoderOptions::NONE).decode();
        if decoded.code() != code {
            continue;
        }
        let has_memory = (0..decoded.op_count()).any(|op| decoded.op_kind(op) == OpKind::Memory);
        return Some(Instance { inst: decoded, bytes, rip, fixed, pins, has_memory });
    }
    None
}

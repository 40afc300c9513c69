//! Random states that floating point finds interesting.

use super::oracle::{MEMORY, Machine};
use vmcs12::arch::rflags;
use vmcs12::cpu_state::VectorState;

/// SplitMix64.
pub struct Random(pub u64);

const SINGLES: [u32; 16] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0x3f00_0000,
    0x3eaa_aaab,
];

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.next().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }

    /// A register or memory operand: random bits, singles, doubles, halves or small numbers.
    fn vector(&mut self, bytes: &mut [u8]) {
        match self.below(8) {
            0 | 1 => self.fill(bytes),
            2 | 3 => {
                bytes.chunks_exact_mut(4).for_each(|at| at.copy_from_slice(&self.single().to_le_bytes()));
            }
            4 | 5 => {
                bytes.chunks_exact_mut(8).for_each(|at| at.copy_from_slice(&self.double().to_le_bytes()));
            }
            6 => bytes.chunks_exact_mut(4).for_each(|at| {
                at.copy_from_slice(&((self.below(9) as f32) - 4.0).to_le_bytes());
            }),
            _ => bytes.chunks_exact_mut(8).for_each(|at| {
                at.copy_from_slice(&((self.below(9) as f64) * 0.5 - 2.0).to_le_bytes());
            }),
        }
    }

    fn single(&mut self) -> u32 {
        let special = SINGLES[self.below(16) as usize];
        match self.below(4) {
            0 => special,
            1 => special ^ (self.next() as u32 & 0xff),
            2 => (0x3f80_0000 ^ self.next() as u32 & 0x83ff_ffff).wrapping_sub(0x0100_0000),
            _ => self.next() as u32,
        }
    }

    fn double(&mut self) -> u64 {
        let special = f64::from(f32::from_bits(SINGLES[self.below(16) as usize])).to_bits();
        match self.below(5) {
            0 => special,
            1 => self.next() & 0x800f_ffff_ffff_ffff,
            2 => self.next() & 0x8000_0000_0000_00ff | 0x7fe0_0000_0000_0000,
            3 => (self.next() & 0x807f_ffff_ffff_ffff).wrapping_add(0x3fc0_0000_0000_0000),
            _ => self.next(),
        }
    }

    /// An 80-bit operand: every class of encoding, unsupported ones included.
    pub fn extended(&mut self, bytes: &mut [u8]) {
        let sign = (self.next() as u16) & 0x8000;
        let exponent: u16 = match self.below(8) {
            0 => 0,
            1 => 0x7fff,
            2 => self.below(0x8000) as u16,
            3 => 1 + self.below(3) as u16,
            4 => 0x7ffc + self.below(3) as u16,
            _ => 0x3fff - 40 + self.below(90) as u16,
        };
        let mantissa = match self.below(8) {
            0 => 1 << 63,
            1 => 0,
            2 => 3 << 62,
            3 => self.next(),
            4 => (self.next() | 1 << 63) & 0xffff_ff00_0000_0000,
            5 => u64::MAX << self.below(64),
            _ => self.next() | 1 << 63,
        };
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..10].copy_from_slice(&(sign | exponent).to_le_bytes());
    }

    /// MXCSR: masked in half of the cases, with sticky flags, any rounding, FTZ and DAZ.
    fn mxcsr(&mut self) -> u32 {
        let random = self.next() as u32 & 0xffff;
        match self.below(4) {
            0 => 0x1f80,
            1 => random | 0x1f80,
            2 => random | 0x1f80 & !(1 << (7 + self.below(6))),
            _ => random,
        }
    }

    fn vector_state(&mut self) -> VectorState {
        let mut state = VectorState { mxcsr: self.mxcsr(), ..VectorState::default() };
        for register in &mut state.ymm {
            self.vector(register);
        }
        for register in &mut state.st {
            self.extended(&mut register[..10]);
        }
        state.fcw = match self.below(3) {
            0 => 0x37f,
            1 => self.next() as u16 & 0x1f3f | 0x40,
            _ => self.next() as u16 & 0xf00 | 0x7f,
        };
        // Sticky flags only where masked, so that nothing is pending.
        state.fsw = self.next() as u16 & 0x7f40 | self.next() as u16 & state.fcw & 0x3f;
        state.ftw = if self.below(2) == 0 { 0xff } else { self.next() as u8 };
        state
    }

    pub fn machine(&mut self) -> Machine {
        let mut machine = Machine {
            vector: self.vector_state(),
            general: std::array::from_fn(|_| self.next()),
            rflags: self.next() & rflags::STATUS | rflags::FIXED | rflags::IF,
            memory: [0; MEMORY],
        };
        if self.below(3) == 0 {
            self.extended(&mut machine.memory);
            self.vector(&mut machine.memory[16..64]);
        } else {
            self.vector(&mut machine.memory[..64]);
        }
        // String comparisons take lengths in RAX and RDX.
        if self.below(2) == 0 {
            machine.general[0] = self.below(40).wrapping_sub(20);
            machine.general[2] = self.below(40).wrapping_sub(20);
        }
        machine
    }
}

//! Random values that integer instructions find interesting.

use super::state::Registers;
use vmcs12::arch::rflags;

/// SplitMix64.
pub struct Random(pub u64);

const BOUNDARIES: [u64; 14] = [
    0,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
    0x0f0f_0f0f_0f0f_0f0f,
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
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Random bits, small numbers, boundaries of each width and their neighbours, single bits, sign-extensions.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 | 1 => self.next(),
            2 => self.below(80),
            3 => self.pick(&BOUNDARIES).wrapping_add(self.below(3)).wrapping_sub(1),
            4 => (1u64 << self.below(64)).wrapping_sub(self.below(2)),
            5 => match self.below(3) {
                0 => self.next() as i8 as u64,
                1 => self.next() as i16 as u64,
                _ => self.next() as i32 as u64,
            },
            6 => self.next() >> self.below(64),
            _ => self.pick(&BOUNDARIES) & 0xffff_ffff | self.next() << 32,
        }
    }

    pub fn registers(&mut self) -> Registers {
        let direction = if self.one_in(4) { rflags::DF } else { 0 };
        let identification = if self.one_in(8) { rflags::ID } else { 0 };
        let status = self.next() & rflags::STATUS;
        Registers {
            gpr: std::array::from_fn(|_| self.value()),
            rflags: rflags::FIXED | rflags::IF | status | direction | identification,
        }
    }

    /// Memory: interesting values, and runs of one byte for the string instructions.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let room = bytes.len() - at;
            if self.one_in(8) {
                let n = (self.below(60) as usize + 4).min(room);
                let byte = self.pick(&[0, 0xff, 0x41]);
                bytes[at..at + n].fill(byte);
                at += n;
            } else {
                let n = room.min(8);
                bytes[at..at + n].copy_from_slice(&self.value().to_le_bytes()[..n]);
                at += n;
            }
        }
    }
}

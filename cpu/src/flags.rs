//! The six status flags, kept lazily: the last result and the carries that made it.
//! SDM Vol. 1, "Status Flags".

use vmcs12::arch::rflags as bit;

/// CF of `aux`: the carry out of the most significant bit.
const CARRY: u32 = 63;
/// The carry into the most significant bit; OF is its difference from CF.
const CARRY_IN: u32 = 62;
/// A byte exclusive-ored into the result's low byte before its parity is taken.
const PARITY_DELTA: u32 = 8;
/// A bit exclusive-ored into the result's sign.
const SIGN_DELTA: u32 = 16;

/// Status flags as the last result and the vector of carries behind it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    /// The result, sign-extended to 64 bits: ZF, SF and PF.
    pub result: u64,
    /// Bit 63 CF, bit 62 the carry into the top bit, bit 3 AF, bits 15:8 and 16 corrections of PF and SF.
    pub aux: u64,
}

impl Status {
    /// The status after an addition or subtraction of width `bits`: `carries` has bit i set if bit i carried (borrowed).
    #[inline(always)]
    pub fn arithmetic(result: u64, carries: u64, bits: u32) -> Self {
        Self { result, aux: ((carries >> (bits - 2)) << CARRY_IN) | (carries & 8) }
    }

    /// The status after a logical operation: CF, OF and AF are 0.
    #[inline(always)]
    pub fn logical(result: u64) -> Self {
        Self { result, aux: 0 }
    }

    /// A status from a result and explicit carry and overflow; AF is 0.
    #[inline(always)]
    pub fn explicit(result: u64, carry: bool, overflow: bool) -> Self {
        let (carry, overflow) = (u64::from(carry), u64::from(overflow));
        Self { result, aux: carry << CARRY | (carry ^ overflow) << CARRY_IN }
    }

    /// The status with CF and OF replaced.
    #[inline(always)]
    #[must_use]
    pub fn with_carry_overflow(self, carry: bool, overflow: bool) -> Self {
        let kept = self.aux & !(3 << CARRY_IN);
        let (carry, overflow) = (u64::from(carry), u64::from(overflow));
        Self { result: self.result, aux: kept | carry << CARRY | (carry ^ overflow) << CARRY_IN }
    }

    /// The status with CF replaced.
    #[inline(always)]
    #[must_use]
    pub fn with_carry(self, carry: bool) -> Self {
        self.with_carry_overflow(carry, self.overflow())
    }

    /// CF.
    #[inline(always)]
    pub fn carry(self) -> bool {
        (self.aux as i64) < 0
    }
    /// OF.
    #[inline(always)]
    pub fn overflow(self) -> bool {
        ((self.aux ^ (self.aux << 1)) as i64) < 0
    }
    /// ZF.
    #[inline(always)]
    pub fn zero(self) -> bool {
        self.result == 0
    }
    /// SF.
    #[inline(always)]
    pub fn sign(self) -> bool {
        ((self.result ^ (self.aux << (63 - SIGN_DELTA))) as i64) < 0
    }
    /// PF.
    #[inline(always)]
    pub fn parity(self) -> bool {
        ((self.result ^ (self.aux >> PARITY_DELTA)) as u8).count_ones() & 1 == 0
    }
    /// AF.
    #[inline(always)]
    pub fn adjust(self) -> bool {
        self.aux & 8 != 0
    }

    /// The flags in their RFLAGS places.
    pub fn bits(self) -> u64 {
        let flag = |on: bool, mask: u64| if on { mask } else { 0 };
        flag(self.carry(), bit::CF)
            | flag(self.parity(), bit::PF)
            | flag(self.adjust(), bit::AF)
            | flag(self.zero(), bit::ZF)
            | flag(self.sign(), bit::SF)
            | flag(self.overflow(), bit::OF)
    }

    /// The status with these RFLAGS bits.
    pub fn from_bits(rflags: u64) -> Self {
        let has = |mask: u64| rflags & mask != 0;
        // A result whose low byte is 0 and whose sign is 0 leaves PF = 1 and SF = 0, for the deltas to correct.
        let result = if has(bit::ZF) { 0 } else { 1 << 8 };
        let deltas = u64::from(!has(bit::PF)) << PARITY_DELTA | u64::from(has(bit::SF)) << SIGN_DELTA;
        let aux = deltas | if has(bit::AF) { 8 } else { 0 };
        Self { result, aux }.with_carry_overflow(has(bit::CF), has(bit::OF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_the_six_flags_survives_the_round_trip() {
        let all = [bit::CF, bit::PF, bit::AF, bit::ZF, bit::SF, bit::OF];
        for n in 0..64u32 {
            let rflags =
                all.iter().enumerate().filter(|(i, _)| n >> i & 1 != 0).fold(0, |sum, (_, mask)| sum | mask);
            assert_eq!(Status::from_bits(rflags).bits(), rflags);
        }
    }
}

//! One bit for each of the 256 vectors: IRR, ISR and TMR.

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// Adds a vector.
    pub fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    /// Removes a vector.
    pub fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    /// Is the vector in the set?
    #[must_use]
    pub fn is_set(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] & 1 << (vector & 63) != 0
    }

    /// The highest vector of the set.
    #[must_use]
    pub fn highest(&self) -> Option<u8> {
        let word = (0..4u8).rev().find(|word| self.0[usize::from(*word)] != 0)?;
        Some(word << 6 | self.0[usize::from(word)].ilog2() as u8)
    }

    /// The 32-bit register `n` of eight.
    #[must_use]
    pub fn register(&self, n: u8) -> u32 {
        (self.0[usize::from(n >> 1 & 3)] >> (32 * (n & 1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_is_its_own() {
        for vector in 0..=255 {
            let mut set = Vectors::default();
            assert_eq!(set.highest(), None);
            set.set(vector);
            assert_eq!(set.highest(), Some(vector));
            assert_eq!(set.register(vector / 32), 1 << (vector % 32));
            set.clear(vector);
            assert!(!set.is_set(vector));
        }
    }
}

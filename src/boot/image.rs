//! Checked reading of little-endian fields of a file.

use super::Problem;

/// A part of a file, with a name for messages.
#[derive(Clone, Copy)]
pub struct View<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> View<'a> {
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// The same file, read for another purpose.
    pub fn named(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    pub fn len(self) -> u64 {
        self.bytes.len() as u64
    }

    pub fn slice(self, from: u64, length: u64) -> Result<&'a [u8], Problem> {
        let end = from.saturating_add(length);
        let range = usize::try_from(from).ok().zip(usize::try_from(end).ok());
        range.and_then(|(from, end)| self.bytes.get(from..end)).ok_or(Problem::Truncated {
            what: self.what,
            needed: end,
            length: self.len(),
        })
    }

    fn array<const N: usize>(self, at: u64) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(at, N as u64)?);
        Ok(array)
    }

    pub fn u16(self, at: u64) -> Result<u16, Problem> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub fn u32(self, at: u64) -> Result<u32, Problem> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub fn u64(self, at: u64) -> Result<u64, Problem> {
        self.array(at).map(u64::from_le_bytes)
    }
}

//! Address spaces as types, and the two traits that are all the nested engine knows of memory.

use crate::arch::event::Exception;

macro_rules! address {
    ($($(#[$meta:meta])* $name:ident;)*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address of the 4-KiB page.
            #[must_use]
            pub const fn page(self) -> Self { Self(self.0 & !0xfff) }
            /// The offset in the 4-KiB page.
            #[must_use]
            pub const fn offset(self) -> u64 { self.0 & 0xfff }
            /// The address `n` bytes on, modulo 2⁶⁴.
            #[must_use]
            pub const fn plus(self, n: u64) -> Self { Self(self.0.wrapping_add(n)) }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl crate::field::Value for $name {
            #[inline(always)]
            fn from_raw(raw: u64) -> Self { Self(raw) }
            #[inline(always)]
            fn raw(self) -> u64 { self.0 }
        }
    )* };
}

address! {
    /// L1-physical: what ept01 translates.
    Gpa;
    /// L2-physical: the input of ept12.
    Ngpa;
    /// A linear address in a guest.
    Gva;
    /// Machine-physical: `ram` below 2⁵¹, L0's arena from 2⁵¹ up.
    Pa;
}

/// Where L0's arena begins in machine-physical space.
pub const ARENA_BASE: Pa = Pa(1 << 51);
/// The processor's own physical-address width, whatever the profile says.
pub const MACHINE_PHYSICAL_WIDTH: u32 = 52;

/// Machine-physical memory: `ram` and the arena. An access to a hole reads all ones and drops writes.
/// Each access is one atomic or volatile operation; an access that crosses a page is split.
pub trait Physical {
    /// Reads `into.len()` bytes.
    fn read(&self, from: Pa, into: &mut [u8]);
    /// Writes `bytes`.
    fn write(&self, to: Pa, bytes: &[u8]);
    /// Reads an aligned 8-byte entry, atomically.
    fn read_u64(&self, from: Pa) -> u64;
    /// Writes an aligned 8-byte entry, atomically.
    fn write_u64(&self, to: Pa, value: u64);
    /// Replaces an aligned 8-byte entry if it is `old`; returns what was there (equal to `old` on success).
    fn compare_exchange_u64(&self, at: Pa, old: u64, new: u64) -> u64;
    /// Is the 4-KiB page at this address backed by memory?
    fn is_backed(&self, page: Pa) -> bool;

    /// Reads a 4-byte value.
    fn read_u32(&self, from: Pa) -> u32 {
        let mut bytes = [0; 4];
        self.read(from, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    /// Writes a 4-byte value.
    fn write_u32(&self, to: Pa, value: u32) {
        self.write(to, &value.to_le_bytes());
    }
    /// Copies the page once; what L0 reads and acts upon it reads from the copy.
    fn copy_page(&self, page: Pa) -> Box<[u8; 4096]> {
        let mut copy = Box::new([0; 4096]);
        self.read(page.page(), &mut copy[..]);
        copy
    }
}

/// Why a guest-linear access of L0's did not take place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinearFault {
    /// The guest gets this exception.
    Exception(Exception),
    /// The access left guest RAM, or ept01 does not map it; the VMM decides.
    Ept(Gpa),
}

/// Guest-linear memory of the guest that took the exit, in its current mode and at its CPL: the memory
/// operands of VMX instructions. `address` already includes the segment base; the caller has made the
/// segment checks.
pub trait Linear {
    /// Reads bytes, or says what the guest gets instead.
    ///
    /// # Errors
    /// The exception that the access raises.
    fn read(&mut self, address: Gva, into: &mut [u8]) -> Result<(), LinearFault>;
    /// Writes bytes; on a fault nothing has been written.
    ///
    /// # Errors
    /// The exception that the access raises.
    fn write(&mut self, address: Gva, bytes: &[u8]) -> Result<(), LinearFault>;
}

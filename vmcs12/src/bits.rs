//! Registers as the manual prints them: a name, a width, and one row for each bit field.

use std::marker::PhantomData;

/// A bit field of the register `R`, holding values of type `T`.
pub struct Bits<R, T> {
    /// Lowest bit.
    pub low: u8,
    /// Number of bits.
    pub width: u8,
    of: PhantomData<fn(R) -> T>,
}

impl<R, T> Clone for Bits<R, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R, T> Copy for Bits<R, T> {}

impl<R, T> Bits<R, T> {
    /// The bits `high:low`.
    pub const fn new(high: u8, low: u8) -> Self {
        assert!(high >= low && high < 64);
        Self { low, width: high - low + 1, of: PhantomData }
    }

    /// The field's bits, in place.
    pub const fn mask(self) -> u64 {
        (u64::MAX >> (64 - self.width)) << self.low
    }
}

/// What a bit field can hold.
pub trait BitValue: Copy {
    /// The value of the right-aligned bits `raw`.
    fn from_bits(raw: u64) -> Self;
    /// The value as right-aligned bits.
    fn bits(self) -> u64;
}

macro_rules! int_bit_value {
    ($($t:ty)*) => { $(impl BitValue for $t {
        #[inline(always)]
        fn from_bits(raw: u64) -> Self { raw as $t }
        #[inline(always)]
        fn bits(self) -> u64 { u64::from(self) }
    })* };
}
int_bit_value!(u8 u16 u32 u64);

impl BitValue for bool {
    #[inline(always)]
    fn from_bits(raw: u64) -> Self {
        raw != 0
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self)
    }
}

/// Declares a register: `bits! { pub struct Name: u32 { FIELD high:low type; BIT n bool; } }`.
#[macro_export]
macro_rules! bits {
    ($(#[$meta:meta])* pub struct $name:ident: $raw:ty {
        $($(#[$fmeta:meta])* $field:ident $high:literal $(: $low:literal)? $t:ty;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $raw);

        #[allow(missing_docs, reason = "the rows are the manual's own names")]
        impl $name {
            $($(#[$fmeta])* pub const $field: $crate::bits::Bits<$name, $t> = $crate::bits!(@range $high $(, $low)?);)*
            /// The bits without a row.
            pub const RESERVED: $raw = !(0 $(| Self::$field.mask() as $raw)*);

            /// The value of a field.
            #[inline(always)]
            pub fn get<T: $crate::bits::BitValue>(self, field: $crate::bits::Bits<$name, T>) -> T {
                T::from_bits((u64::from(self.0) & field.mask()) >> field.low)
            }

            /// The register with a field replaced; surplus bits of the value are dropped.
            #[inline(always)]
            #[must_use]
            pub fn with<T: $crate::bits::BitValue>(self, field: $crate::bits::Bits<$name, T>, value: T) -> Self {
                let kept = u64::from(self.0) & !field.mask();
                Self((kept | ((value.bits() << field.low) & field.mask())) as $raw)
            }
        }

        impl $crate::field::Value for $name {
            #[inline(always)]
            fn from_raw(raw: u64) -> Self { Self(raw as $raw) }
            #[inline(always)]
            fn raw(self) -> u64 { u64::from(self.0) }
        }
    };
    (@range $bit:literal) => { $crate::bits::Bits::new($bit, $bit) };
    (@range $high:literal, $low:literal) => { $crate::bits::Bits::new($high, $low) };
}

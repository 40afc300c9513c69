//! Pure arithmetic with its status flags. SDM Vol. 2, each instruction's "Operation" and "Flags Affected".

use crate::flags::Status;
use crate::interpret::operand::Width;

/// Bits that carry out of each place when `a + b` (with a carry in) gives `sum`.
#[inline(always)]
fn carries(a: u64, b: u64, sum: u64) -> u64 {
    (a & b) | ((a | b) & !sum)
}

/// Bits that borrow into each place when `a - b` (with a borrow in) gives `difference`.
#[inline(always)]
fn borrows(a: u64, b: u64, difference: u64) -> u64 {
    (!a & b) | ((!a | b) & difference)
}

/// `a + b + carry`.
#[inline(always)]
pub(crate) fn add<T: Width>(a: T, b: T, carry: bool) -> (T, Status) {
    let (a, b) = (a.to_u64(), b.to_u64());
    let sum = a.wrapping_add(b).wrapping_add(u64::from(carry));
    let value = T::from_u64(sum);
    (value, Status::arithmetic(value.sign_extended(), carries(a, b, sum), T::BITS))
}

/// `a - b - borrow`.
#[inline(always)]
pub(crate) fn sub<T: Width>(a: T, b: T, borrow: bool) -> (T, Status) {
    let (a, b) = (a.to_u64(), b.to_u64());
    let difference = a.wrapping_sub(b).wrapping_sub(u64::from(borrow));
    let value = T::from_u64(difference);
    (value, Status::arithmetic(value.sign_extended(), borrows(a, b, difference), T::BITS))
}

/// The status of a logical result.
#[inline(always)]
pub(crate) fn logic<T: Width>(value: T) -> (T, Status) {
    (value, Status::logical(value.sign_extended()))
}

//! Vector and floating-point instructions: an operation that hands them to `native`.

use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::state::Cpu;

/// The handler of a vector or floating-point instruction; `None`: it is undefined on this processor.
pub(crate) fn select(_: &mut Cpu, _: &Decoding<'_>, _: &mut Op) -> Option<Selected> {
    None
}

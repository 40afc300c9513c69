use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::state::Cpu;
pub(crate) fn select(_: &mut Cpu, _: &Decoding<'_>, _: &mut Op) -> Option<Selected> {
    None
}

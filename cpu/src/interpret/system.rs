use super::*;
use crate::block::Op;
use crate::decode::{Decoding, Selected};
unsafe fn hlt(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.instruction_exit(op, vmcs12::exit::Reason::Hlt, 0)
}
pub(crate) fn select(d: &Decoding<'_>, _: &mut Op) -> Option<Selected> {
    if d.inst.mnemonic() == iced_x86::Mnemonic::Hlt { Some(Selected::end(hlt)) } else { None }
}

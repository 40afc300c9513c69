use crate::state::Cpu;
use vmcs12::arch::event::*;
use vmcs12::exit::*;
pub(crate) struct Delivery {
    pub kind: EventKind,
    pub vector: u8,
    pub error_code: Option<u32>,
    pub return_rip: u64,
    pub instruction_length: u32,
}
impl Cpu {
    pub(crate) fn raise_exception(&mut self, e: Exception) -> Option<Cause> {
        println!("exc {e:?} at {:#x}", self.rip);
        Some(Cause::Vm(Reason::TripleFault))
    }
    pub(crate) fn deliver(&mut self, _: Delivery) -> Option<Cause> {
        None
    }
    pub(crate) fn single_step_trap(&mut self) {}
    pub(crate) fn after_step(&mut self) {}
    pub(crate) fn at_boundary(&mut self) -> Option<Cause> {
        None
    }
    pub(crate) fn refresh_bases(&mut self) {
        self.gpr[18] = self.segments[4].base;
        self.gpr[19] = self.segments[5].base;
    }
}

//! The software processor, as a [`Processor`]: it introduces `cpu` to the clock and to guest memory.

use super::{HostError, Processor};
use crate::clock::Clock;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Exit, Invalidation};
use vmcs12::field::VmcsSet;

/// The software processor.
pub struct Soft {
    cpu: cpu::Cpu,
    time: cpu::Time,
}

impl Soft {
    /// A processor over this memory, which plays this model.
    pub fn new(memory: cpu::Memory, model: cpu::Model, clock: &Clock) -> Self {
        Self { cpu: cpu::Cpu::new(memory, model), time: time(clock) }
    }

    /// Tells the time at the next entry.
    #[inline]
    pub fn set_time(&mut self, clock: &Clock) {
        self.time = time(clock);
    }

    /// Delivers the event that waits in the VMCS, or executes the one instruction at RIP, with `bus` where no memory is. What else happens, an exception or
    /// another exit, is as in [`Processor::enter`].
    pub fn complete(
        &mut self,
        vmcs: &mut VmcsSet,
        state: &mut CpuState,
        clock: &Clock,
        bus: &mut dyn cpu::Bus,
    ) -> Exit {
        self.cpu.complete(vmcs, state, &time(clock), bus)
    }

    /// Guest-linear memory of the guest that exited last, for operands in memory.
    pub fn linear(&mut self) -> cpu::LinearView<'_> {
        self.cpu.linear()
    }
}

fn time(clock: &Clock) -> cpu::Time {
    cpu::Time { now_ns: clock.now_ns(), tsc_mult_q32: clock.tsc_per_ns_q32() }
}

impl Processor for Soft {
    #[inline]
    fn enter(&mut self, vmcs: &mut VmcsSet, state: &mut CpuState, until: Budget) -> Result<Exit, HostError> {
        Ok(self.cpu.enter(vmcs, state, until, &self.time))
    }

    #[inline]
    fn invalidate(&mut self, what: Invalidation) {
        self.cpu.invalidate(what);
    }
}

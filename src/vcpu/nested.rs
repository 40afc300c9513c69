//! Where the run loop meets the nested engine.

use super::msr::Own;
use super::trap::{self, Handler, Then};
use super::{Concluded, Step, Vcpu, budget, control_register, operation};
use crate::config::End;
use crate::machine::board::Board;
use shadow::engine::{Decision, Host, L2Exit, Outcome, Pending, Taken, Task};
use vmcs12::addr::{Gpa, Gva, Linear, LinearFault, Pa};
use vmcs12::arch::event::Exception;
use vmcs12::error::Abort;
use vmcs12::exit::{Budget, Reason};
use vmcs12::field::table::{EXIT_REASON, GUEST_PHYSICAL_ADDRESS};

/// No instruction of L1's is at hand, and so no operand in its memory.
struct NoOperand;

impl Linear for NoOperand {
    fn read(&mut self, _: Gva, _: &mut [u8]) -> Result<(), LinearFault> {
        Err(LinearFault::Exception(Exception::gp(0)))
    }
    fn write(&mut self, _: Gva, _: &[u8]) -> Result<(), LinearFault> {
        Err(LinearFault::Exception(Exception::gp(0)))
    }
}

/// Lets the engine act on what a vCPU is made of; the operand's memory is what the first closure makes of the
/// processor.
macro_rules! with_engine {
    (
        $vcpu:ident, $board:ident, |$soft:ident| $operand:expr,
        |$engine:ident, $host:ident| $call:expr
    ) => {{
        let Vcpu { engine: $engine, soft: $soft, vmcs01, state, registers, memory, model, index, .. } = $vcpu;
        let tsc = $board.clock.tsc().wrapping_add(registers.tsc_offset);
        let Board { devices, clock, .. } = &mut *$board;
        let mut own = Own { registers, devices, vcpu: *index, clock, model };
        let mut linear = $operand;
        let $host = &mut Host { memory: &*memory, linear: &mut linear, msrs: &mut own, vmcs01, state, tsc };
        $call
    }};
}

impl Vcpu {
    /// L1 executed a VMX instruction.
    pub(super) fn on_vmx_instruction(&mut self, board: &mut Board, reason: Reason) -> Then {
        let before = operation(&self.engine);
        let outcome = with_engine!(self, board, |soft| soft.linear(), |engine, host| {
            engine.on_l1_instruction(host, reason)
        });
        let after = operation(&self.engine);
        if before != after {
            control_register::follow_vmx_operation(&mut self.vmcs01.current, after);
        }
        match outcome {
            Outcome::Completed => Then::Again(1),
            Outcome::Entered => {
                board.retire(1);
                Then::Again(0)
            }
            Outcome::Exception(exception) => Then::Raise(exception),
            Outcome::Reflected => Then::Again(0),
            Outcome::Abort(abort) => Then::End(end(abort)),
        }
    }

    /// Before each entry to L2: what waits goes to L1 or to L2, or waits on.
    pub(super) fn before_l2(&mut self, board: &mut Board) -> Step {
        self.take_signals(board);
        let pending =
            Pending { init: self.init, nmi: self.nmi, interrupt: board.devices.pending_vector(self.index) };
        let decision = with_engine!(self, board, |_soft| NoOperand, |engine, host| engine
            .before_l2_entry(host, pending));
        match decision {
            Decision::Enter(taken) => {
                self.take(board, taken);
                Step::Enter(budget(board))
            }
            Decision::Deliver => Step::Enter(Budget(0)),
            Decision::Halted => Step::Idle(self.halted_until(board)),
            Decision::Reflected(taken) => {
                self.take(board, taken);
                self.count_synthesised();
                Step::Again
            }
            Decision::Abort(abort) => Step::End(end(abort)),
        }
    }

    /// When the VMX-preemption timer wakes the halted L2.
    fn halted_until(&self, board: &Board) -> Option<u64> {
        let tsc = self.engine.halted_until()?;
        Some(board.clock.ns_at_tsc(tsc.wrapping_sub(self.registers.tsc_offset)))
    }

    /// What has been taken waits no longer.
    fn take(&mut self, board: &mut Board, taken: Taken) {
        match taken {
            Taken::Nothing => {}
            Taken::Init => self.init = false,
            Taken::Nmi => self.nmi = false,
            Taken::Interrupt => {
                board.devices.acknowledge(self.index);
            }
        }
    }

    /// The reason of an exit that no exit from vmcs02 caused stands in vmcs12.
    fn count_synthesised(&mut self) {
        let reason = self.vmcs01.linked.as_ref().map(|vmcs12| vmcs12.get(EXIT_REASON) as u16);
        if let Some(reason) = reason.and_then(Reason::from_number) {
            self.counters.from_l2_reflected.add(reason);
        }
    }

    /// L2 exited.
    pub(super) fn on_l2_exit(&mut self, board: &mut Board, reason: Reason) -> Then {
        let exit =
            with_engine!(self, board, |_soft| NoOperand, |engine, host| engine.on_l2_exit(host, reason));
        let counted = match exit {
            L2Exit::Reflected => &mut self.counters.from_l2_reflected,
            L2Exit::Resumed | L2Exit::L0(_) | L2Exit::Abort(_) => &mut self.counters.from_l2_kept,
        };
        counted.add(reason);
        match exit {
            L2Exit::Resumed | L2Exit::Reflected => Then::Again(0),
            L2Exit::L0(Task::Halt) => Then::Again(1),
            L2Exit::L0(Task::Mmio(at)) => self.device_memory_of_l2(board, at),
            L2Exit::L0(Task::Emulate(reason)) => self.emulate_for_l2(board, reason),
            L2Exit::Abort(abort) => Then::End(end(abort)),
        }
    }

    /// L2 accessed what stands for an address of L1's without memory.
    fn device_memory_of_l2(&mut self, board: &mut Board, at: Gpa) -> Then {
        let accessed = Pa(self.engine.vmcs02.current.get(GUEST_PHYSICAL_ADDRESS));
        self.holes.add(accessed, at);
        let holes = self.holes;
        trap::device_memory(&mut self.trap(board), &holes)
    }

    /// What L0 does for L1 it does for L2 when L1 does not care.
    fn emulate_for_l2(&mut self, board: &mut Board, reason: Reason) -> Then {
        match trap::handler(reason) {
            Handler::L0(handle) => match handle(&mut self.trap(board)) {
                // A wait that L1 does not see is over at once.
                Then::Wait(_) => Then::Next,
                then => then,
            },
            Handler::Engine | Handler::Never => {
                Then::End(End::Broken(format!("L0 kept an exit of L2 for {}", reason.name())))
            }
        }
    }

    /// L0 emulated an instruction of L2, and it faults.
    pub(super) fn raise_in_l2(&mut self, board: &mut Board, exception: Exception) -> Concluded {
        let raised =
            with_engine!(self, board, |_soft| NoOperand, |engine, host| engine.raise(host, exception));
        match raised {
            L2Exit::Reflected => self.count_synthesised(),
            L2Exit::Abort(abort) => return Concluded::End(end(abort)),
            L2Exit::Resumed | L2Exit::L0(_) => {}
        }
        Concluded::Done
    }
}

fn end(abort: Abort) -> End {
    End::VmxAbort(abort as u32)
}

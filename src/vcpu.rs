//! A virtual processor and its run loop: enter L1 or L2, count, handle the exit, enter again. Nothing on the way is
//! allocated, locked or formatted. [`trap`] has what L0 does for an exit that is its own; the crate `shadow` decides
//! about everything nested.

pub mod control_register;
pub mod ept01;
pub mod event;
pub mod first_state;
pub mod io;
pub mod last_exits;
pub mod model;
pub mod msr;
pub mod nested;
pub mod trap;
pub mod vmcs01;

use crate::clock::Source;
use crate::config::End;
use crate::machine::board::Board;
use crate::observe::counters::Counters;
use crate::processor::soft::Soft;
use crate::processor::{HostError, Processor};
use control_register::VmxOperation;
use event::Choice;
use last_exits::{LastExits, Level, Record};
use model::Model;
use msr::Registers;
use shadow::engine::Engine;
use trap::{Handler, HolePages, Then, Trap, Waiting};
use vmcs12::arch::event::Exception;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Cause, Exit, Reason};
use vmcs12::field::VmcsSet;
use vmcs12::field::table::*;

/// Instructions between two looks outside: a request to end is heeded within a fraction of a second.
const MOST_INSTRUCTIONS: u64 = 5_000_000;
/// Under the host clock: between two looks at it.
const MOST_INSTRUCTIONS_HOST_CLOCK: u64 = 100_000;
/// Exits that come of finishing exits, one after the other, before the guest is entered again: no instruction has more.
const MOST_EXITS_IN_A_ROW: u32 = 16;
/// Entries between two looks outside, whatever they retire.
const MOST_ENTRIES: u32 = 4096;

/// A virtual processor.
pub struct Vcpu {
    index: usize,
    soft: Soft,
    memory: cpu::Memory,
    vmcs01: VmcsSet,
    state: CpuState,
    engine: Engine,
    registers: Registers,
    model: Model,
    waiting: Option<Waiting>,
    /// Of the instruction of L2 that is being completed.
    holes: HolePages,
    nmi: bool,
    init: bool,
    counters: Counters,
    last_exits: LastExits,
    entries: u32,
}

/// What a vCPU is made of.
pub struct Parts {
    /// Its number.
    pub index: usize,
    /// What executes it.
    pub soft: Soft,
    /// Machine-physical memory.
    pub memory: cpu::Memory,
    /// vmcs01, with L1's first state.
    pub vmcs01: VmcsSet,
    /// The rest of L1's first state.
    pub state: CpuState,
    /// The nested engine, after reset.
    pub engine: Engine,
    /// What L1 was promised.
    pub model: Model,
}

/// What the loop does next.
enum Step {
    /// Enter, for at most so many instructions.
    Enter(Budget),
    /// Look again.
    Again,
    /// Nothing to run until a device has an event, or until this time.
    Idle(Option<u64>),
    /// The run ends.
    End(End),
}

impl Vcpu {
    /// A vCPU in its first state.
    pub fn new(parts: Parts) -> Self {
        let Parts { index, soft, memory, vmcs01, state, mut engine, model } = parts;
        let registers = Registers::new(&model);
        engine.feature_control = registers.feature_control;
        Self {
            index,
            soft,
            memory,
            vmcs01,
            state,
            engine,
            registers,
            model,
            waiting: None,
            holes: HolePages::default(),
            nmi: false,
            init: false,
            counters: Counters::default(),
            last_exits: LastExits::default(),
            entries: 0,
        }
    }

    /// Runs until the run ends.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn run(&mut self, board: &mut Board) -> Result<End, HostError> {
        loop {
            self.entries = self.entries.wrapping_add(1);
            if self.entries.is_multiple_of(MOST_ENTRIES)
                && let Some(end) = board.poll()
            {
                return Ok(end);
            }
            board.tick();
            let step = match self.engine.in_l2() {
                true => self.before_l2(board),
                false => self.before_l1(board),
            };
            match step {
                Step::Enter(budget) => {
                    let exit = self.enter(board, budget)?;
                    if let Some(end) = self.handle(board, exit) {
                        return Ok(end);
                    }
                }
                Step::Again => {}
                Step::Idle(until) => {
                    if let Some(end) = board.idle(until) {
                        return Ok(end);
                    }
                }
                Step::End(end) => return Ok(end),
            }
        }
    }

    /// What was counted.
    pub fn counters(&self, board: &Board) -> Counters {
        let (reads, writes) = self.vmcs01.shadow_accesses;
        Counters {
            instructions: board.retired(),
            vmreads: reads + self.engine.counters.vmreads,
            vmwrites: writes + self.engine.counters.vmwrites,
            ..self.counters.clone()
        }
    }

    /// The last exits, one line each.
    pub fn last_exits(&self) -> Vec<String> {
        self.last_exits.iter().map(ToString::to_string).collect()
    }

    /// Takes what the local APIC has for this processor beside interrupts.
    fn take_signals(&mut self, board: &mut Board) {
        let signals = board.devices.take_signals(self.index);
        self.nmi |= signals.nmi;
        self.init |= signals.init;
    }

    /// Before each entry to L1: what waits is injected, or gets its window.
    fn before_l1(&mut self, board: &mut Board) -> Step {
        self.take_signals(board);
        if self.init && !self.engine.in_vmx_operation() {
            // There is no other processor that could start this one again.
            return Step::End(End::Reset);
        }
        let interrupt = board.devices.has_interrupt(self.index);
        if let Some(waiting) = self.waiting {
            let enabled = event::interrupts_enabled(&self.vmcs01.current);
            match waiting {
                Waiting::Halted if self.nmi || interrupt && enabled => self.waiting = None,
                Waiting::Halted if !enabled => return Step::End(End::Halted),
                Waiting::Monitoring if self.nmi || interrupt || board.devices.next_event().is_none() => {
                    self.waiting = None;
                }
                Waiting::Halted | Waiting::Monitoring => return Step::Idle(None),
            }
        }
        match event::choose(&mut self.vmcs01.current, self.nmi, interrupt) {
            Choice::Nmi => {
                self.nmi = false;
                event::inject_nmi(&mut self.vmcs01.current);
            }
            Choice::Interrupt => {
                if let Some(vector) = board.devices.acknowledge(self.index) {
                    event::inject_interrupt(&mut self.vmcs01.current, vector);
                }
            }
            Choice::Nothing => {}
        }
        Step::Enter(budget(board))
    }

    /// Enters L1 or L2 and counts what retired.
    #[inline]
    fn enter(&mut self, board: &mut Board, budget: Budget) -> Result<Exit, HostError> {
        self.forget();
        self.soft.set_time(&board.clock);
        let set = if self.engine.in_l2() { &mut self.engine.vmcs02 } else { &mut self.vmcs01 };
        let exit = self.soft.enter(set, &mut self.state, budget)?;
        self.retire(board, exit.retired);
        Ok(exit)
    }

    /// Hands the engine's invalidations to the processor.
    #[inline]
    fn forget(&mut self) {
        if !self.engine.invalidations.is_empty() {
            let Self { engine, soft, .. } = self;
            engine.invalidations.drain(|what| soft.invalidate(what));
        }
    }

    #[inline]
    fn retire(&mut self, board: &mut Board, instructions: u64) {
        if self.engine.in_l2() {
            self.counters.instructions_l2 += instructions;
        }
        board.retire(instructions);
    }

    /// Handles an exit, and those that come of handling it.
    fn handle(&mut self, board: &mut Board, exit: Exit) -> Option<End> {
        let mut exit = exit;
        self.holes.clear();
        for _ in 0..MOST_EXITS_IN_A_ROW {
            let in_l2 = self.engine.in_l2();
            let reason = match exit.cause {
                Cause::Vm(reason) => reason,
                Cause::Budget => return board.poll(),
                Cause::EntryFailure(_, rule) => return Some(self.refused(in_l2, rule, 0)),
                Cause::Refused(number, rule) => return Some(self.refused(in_l2, rule, number)),
            };
            self.keep_record(board, reason);
            let then = if in_l2 { self.on_l2_exit(board, reason) } else { self.on_l1_exit(board, reason) };
            match self.conclude(board, then) {
                Concluded::Done => return None,
                Concluded::Exit(next) => exit = next,
                Concluded::End(end) => return Some(end),
            }
        }
        // The guest gets nowhere, but the run can be ended.
        board.poll()
    }

    /// The processor refused a VMCS that L0 made.
    #[cold]
    fn refused(&self, in_l2: bool, rule: &str, number: u32) -> End {
        let vmcs = if in_l2 { "vmcs02" } else { "vmcs01" };
        End::Broken(format!("the processor refused {vmcs}: {rule} (VM-instruction error {number})"))
    }

    #[inline]
    fn keep_record(&mut self, board: &Board, reason: Reason) {
        let in_l2 = self.engine.in_l2();
        let vmcs = if in_l2 { &self.engine.vmcs02.current } else { &self.vmcs01.current };
        self.last_exits.push(Record {
            level: if in_l2 { Level::L2 } else { Level::L1 },
            reason,
            rip: vmcs.get(GUEST_RIP),
            qualification: vmcs.get(EXIT_QUALIFICATION),
            retired: board.retired(),
        });
    }

    fn on_l1_exit(&mut self, board: &mut Board, reason: Reason) -> Then {
        self.counters.from_l1.add(reason);
        match trap::handler(reason) {
            Handler::L0(handle) => {
                event::reinject(&mut self.vmcs01.current);
                handle(&mut self.trap(board))
            }
            Handler::Engine => self.on_vmx_instruction(board, reason),
            Handler::Never => Then::End(End::Broken(format!("L1 exited for {}", reason.name()))),
        }
    }

    /// What L0 works on for the guest that runs.
    fn trap<'a>(&'a mut self, board: &'a mut Board) -> Trap<'a> {
        let operation = operation(&self.engine);
        let vmcs = if self.engine.in_l2() { &mut self.engine.vmcs02 } else { &mut self.vmcs01 };
        Trap {
            vmcs,
            state: &mut self.state,
            registers: &mut self.registers,
            soft: &mut self.soft,
            board,
            model: &self.model,
            vcpu: self.index,
            operation,
        }
    }

    /// Finishes the instruction that exited.
    fn conclude(&mut self, board: &mut Board, then: Then) -> Concluded {
        self.follow_registers();
        match then {
            Then::Next => self.skip_instruction(board),
            Then::Again(instructions) => self.retire(board, instructions),
            Then::Raise(exception) => return self.raise(board, exception),
            Then::Wait(waiting) => {
                self.skip_instruction(board);
                self.waiting = Some(waiting);
            }
            Then::Completed(exit) => {
                self.retire(board, exit.retired);
                if exit.cause != Cause::Budget {
                    return Concluded::Exit(exit);
                }
            }
            Then::End(end) => return Concluded::End(end),
        }
        Concluded::Done
    }

    fn skip_instruction(&mut self, board: &mut Board) {
        let vmcs = if self.engine.in_l2() { &mut self.engine.vmcs02 } else { &mut self.vmcs01 };
        shadow::mode::skip_instruction(&mut vmcs.current);
        self.retire(board, 1);
    }

    /// The guest that exited gets an exception, or, if it is L2's and L1 wants it, L1 gets an exit.
    fn raise(&mut self, board: &mut Board, exception: Exception) -> Concluded {
        if self.engine.in_l2() {
            return self.raise_in_l2(board, exception);
        }
        event::inject_exception(&mut self.vmcs01.current, &mut self.state, exception);
        Concluded::Done
    }

    /// MSRs that others hold copies of.
    fn follow_registers(&mut self) {
        let moved = self.registers.tsc_offset.wrapping_sub(self.vmcs01.current.get(TSC_OFFSET));
        if moved != 0 {
            self.vmcs01.current.set(TSC_OFFSET, self.registers.tsc_offset);
            if self.engine.in_l2() {
                let vmcs02 = &mut self.engine.vmcs02.current;
                vmcs02.set(TSC_OFFSET, vmcs02.get(TSC_OFFSET).wrapping_add(moved));
            }
        }
        self.engine.feature_control = self.registers.feature_control;
    }
}

/// What came of finishing an exit.
enum Concluded {
    /// The guest goes on.
    Done,
    /// Finishing it made another exit.
    Exit(Exit),
    /// The run ends.
    End(End),
}

fn operation(engine: &Engine) -> VmxOperation {
    match engine.in_vmx_operation() {
        true => VmxOperation::Inside,
        false => VmxOperation::Outside,
    }
}

/// Instructions to the next event of a device, at most as many as may pass between two looks outside.
fn budget(board: &Board) -> Budget {
    let most = match board.clock.source() {
        Source::Virtual => MOST_INSTRUCTIONS,
        Source::Host => MOST_INSTRUCTIONS_HOST_CLOCK,
    };
    let event = board.devices.next_event().unwrap_or(u64::MAX);
    Budget(event.saturating_sub(board.clock.now_ns()).clamp(1, most))
}

#[cfg(test)]
mod tests;

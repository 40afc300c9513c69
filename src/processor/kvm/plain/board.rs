//! The devices that are not in the kernel, wired to the interrupt controllers that are.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use super::Event;
use crate::device::{Nanos, Peripherals, Request};
use crate::processor::kvm::error::KvmError;

/// How long the beginning of a line waits for its end before it is shown.
const PATIENCE: Nanos = 20_000_000;
/// Most bytes that wait for room in the serial port's receiver.
const MOST_WAITING: usize = 4096;

/// Sets the level of an interrupt line of the interrupt controllers in the kernel.
pub(super) type SetLine = Box<dyn Fn(u32, bool) -> Result<(), KvmError> + Send + Sync>;

/// The devices. vCPUs access them, the supervisor gives them input and lets time pass.
pub(super) struct Board {
    state: Mutex<State>,
    set_line: SetLine,
    started: Instant,
    events: Sender<Event>,
}

struct State {
    peripherals: Peripherals,
    /// The levels of interrupt lines that the kernel knows.
    lines: u16,
    /// Input for which the receiver had no room.
    waiting: VecDeque<u8>,
    /// When the line begun on the console is shown, finished or not.
    show_at: Option<Nanos>,
    /// When the supervisor will look after the devices by itself.
    due: Option<Nanos>,
}

impl Board {
    pub(super) fn new(peripherals: Peripherals, set_line: SetLine, events: Sender<Event>) -> Self {
        let state = State { peripherals, lines: 0, waiting: VecDeque::new(), show_at: None, due: None };
        Self { state: Mutex::new(state), set_line, started: Instant::now(), events }
    }

    fn now(&self) -> Nanos {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// OUT and OUTS. The first request ends the machine; what follows it is dropped.
    pub(super) fn write(&self, port: u16, width: usize, data: &[u8]) -> Result<Option<Request>, KvmError> {
        let (now, mut state) = (self.now(), self.state());
        let request = data
            .chunks_exact(width.max(1))
            .find_map(|value| state.peripherals.io_write(port, width as u8, little_endian(value), now));
        self.settle(&mut state, now)?;
        Ok(request)
    }

    /// IN and INS.
    pub(super) fn read(&self, port: u16, width: usize, data: &mut [u8]) -> Result<(), KvmError> {
        let (now, mut state) = (self.now(), self.state());
        for value in data.chunks_exact_mut(width.max(1)) {
            let read = state.peripherals.io_read(port, width as u8, now).to_le_bytes();
            value.copy_from_slice(&read[..value.len()]);
        }
        self.settle(&mut state, now)
    }

    /// How many more bytes of input may come.
    pub(super) fn input_room(&self) -> usize {
        MOST_WAITING.saturating_sub(self.state().waiting.len())
    }

    /// A byte for the serial port.
    pub(super) fn input(&self, byte: u8) -> Result<(), KvmError> {
        let (now, mut state) = (self.now(), self.state());
        state.waiting.push_back(byte);
        self.settle(&mut state, now)
    }

    /// How long until [`look_after`](Self::look_after) is to be called.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let due = self.state().due?;
        Some(Duration::from_nanos(due.saturating_sub(self.now())))
    }

    /// Lets time pass for the devices, and shows a line that is not finished yet.
    pub(super) fn look_after(&self) -> Result<(), KvmError> {
        let (now, mut state) = (self.now(), self.state());
        state.peripherals.tick(now);
        if state.show_at.is_some_and(|at| at <= now) {
            // A console that is gone does not end the guest; the end of the run reports it.
            let _ = state.peripherals.serial.flush();
        }
        state.due = None;
        self.settle(&mut state, now)
    }

    /// Shows what has not been shown.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.state().peripherals.serial.flush()
    }

    /// What follows from any access: input moves up, lines change level, the supervisor's next visit may be earlier.
    fn settle(&self, state: &mut State, now: Nanos) -> Result<(), KvmError> {
        state.refill();
        let lines = state.peripherals.lines();
        let mut changed = lines ^ state.lines;
        while changed != 0 {
            let line = changed.trailing_zeros();
            (self.set_line)(line, lines >> line & 1 != 0)?;
            changed &= changed - 1;
        }
        state.lines = lines;
        state.show_at = match state.peripherals.serial.has_unwritten() {
            true => state.show_at.or(Some(now + PATIENCE)),
            false => None,
        };
        self.schedule(state);
        Ok(())
    }

    /// A visit that is too early costs little, so that only an earlier one is told.
    fn schedule(&self, state: &mut State) {
        let wanted = [state.peripherals.next_event(), state.show_at].into_iter().flatten().min();
        if let Some(wanted) = wanted.filter(|&wanted| state.due.is_none_or(|due| wanted < due)) {
            state.due = Some(wanted);
            // Nobody receives while the machine is being taken down.
            let _ = self.events.send(Event::Due);
        }
    }
}

impl State {
    fn refill(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let taken = self.peripherals.serial.receive(self.waiting.make_contiguous());
        self.waiting.drain(..taken);
    }
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

//! What the vCPUs of a machine share: the clock, the devices, and the way out.

use crate::clock::Clock;
use crate::config::{End, Retired, Stop};
use crate::device::{Devices, Request};
use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// How long an idle machine waits for input before it looks again whether it is asked to end.
const PATIENCE: Duration = Duration::from_millis(20);

/// The machine around the vCPUs.
pub struct Board {
    /// The one clock.
    pub clock: Clock,
    /// The devices.
    pub devices: Devices,
    input: Input,
    stop: Stop,
    retired: Retired,
    total: u64,
}

/// Bytes for the serial port, and the one that it had no room for yet.
struct Input {
    channel: Receiver<u8>,
    waiting: Option<u8>,
    closed: bool,
}

/// What connects a machine to its user.
pub struct Connections {
    /// Bytes for the serial port.
    pub input: Receiver<u8>,
    /// The count of instructions, for others.
    pub retired: Retired,
    /// The request to end.
    pub stop: Stop,
}

impl Board {
    /// A board at time 0.
    pub fn new(clock: Clock, devices: Devices, connections: Connections) -> Self {
        let Connections { input, retired, stop } = connections;
        let input = Input { channel: input, waiting: None, closed: false };
        Self { clock, devices, input, stop, retired, total: 0 }
    }

    /// The processor, or L0 for it, retired instructions.
    #[inline]
    pub fn retire(&mut self, instructions: u64) {
        self.total += instructions;
        self.clock.retire(instructions);
        self.retired.publish(self.total);
    }

    /// Instructions retired, all levels together.
    #[inline]
    pub fn retired(&self) -> u64 {
        self.total
    }

    /// Raises the interrupts whose time has come.
    #[inline]
    pub fn tick(&mut self) {
        self.devices.tick(self.clock.now_ns());
    }

    /// Looks outside: is the run to end, did somebody type?
    pub fn poll(&mut self) -> Option<End> {
        if let Some(reason) = self.stop.requested() {
            return Some(End::Stopped(reason));
        }
        self.receive();
        None
    }

    /// Hands waiting input to the serial port, as much as it takes.
    fn receive(&mut self) {
        while let Some(byte) = self.input.next() {
            if self.devices.receive(&[byte]) == 0 {
                self.input.waiting = Some(byte);
                return;
            }
        }
    }

    /// Every vCPU waits: lets time pass until the next event of a device. `Some` if nothing can happen any more.
    pub fn idle(&mut self) -> Option<End> {
        match self.devices.next_event() {
            Some(at) => {
                if let Some(wait) = self.clock.wait(at) {
                    self.input.wait(wait.min(PATIENCE));
                }
                self.clock.skip_to(at);
            }
            None if self.input.closed => return Some(End::Halted),
            None => self.input.wait(PATIENCE),
        }
        self.poll()
    }
}

impl Input {
    fn next(&mut self) -> Option<u8> {
        if let Some(byte) = self.waiting.take() {
            return Some(byte);
        }
        match self.channel.try_recv() {
            Ok(byte) => Some(byte),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.closed = true;
                None
            }
        }
    }

    /// Waits until input comes, at most for `patience`.
    fn wait(&mut self, patience: Duration) {
        if self.closed || self.waiting.is_some() {
            std::thread::sleep(patience);
            return;
        }
        match self.channel.recv_timeout(patience) {
            Ok(byte) => self.waiting = Some(byte),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closed = true,
        }
    }
}

/// How a device's request ends the run.
pub fn end_of(request: Request) -> End {
    match request {
        Request::PowerOff => End::PowerOff,
        Request::Reset => End::Reset,
        Request::DebugExit(value) => End::DebugExit(value),
    }
}

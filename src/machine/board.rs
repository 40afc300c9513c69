//! What the vCPUs of a machine share: the clock, the devices, and the way out.

use crate::clock::Clock;
use crate::config::{End, Retired, Stop};
use crate::device::{Devices, Request};
use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// How long an idle machine waits for input before it looks again whether it is asked to end.
const PATIENCE: Duration = Duration::from_millis(20);

/// An event that is later than this, 146 years on, never comes: time never overflows, whatever a guest asks for.
const END_OF_TIME_NS: u64 = 1 << 62;

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

    /// Looks outside: is the run to end, did somebody type? Shows a line that is not finished yet.
    pub fn poll(&mut self) -> Option<End> {
        // A console that is gone does not end the guest.
        let _ = self.devices.show();
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

    /// Every vCPU waits: lets time pass until the next event of a device, at most until `until`. `Some` if nothing can
    /// happen any more.
    pub fn idle(&mut self, until: Option<u64>) -> Option<End> {
        match self.devices.next_event().into_iter().chain(until).filter(|at| *at < END_OF_TIME_NS).min() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Idle, Source};
    use crate::config::StopReason;
    use crate::device::frequency::Frequency;
    use crate::device::{Machine, Platform};
    use crossbeam::channel::{Sender, bounded};

    fn board() -> (Board, Sender<u8>, Stop) {
        let platform = Platform {
            memory_below_4g: 1 << 20,
            memory_above_4g: 0,
            date: 0,
            console: Box::new(std::io::sink()),
        };
        let devices = Devices::new(Machine {
            processors: 1,
            apic_timer: Frequency::new(25_000_000),
            x2apic: true,
            physical_width: 46,
            platform,
        });
        let (typed, input) = bounded(64);
        let stop = Stop::default();
        let connections = Connections { input, retired: Retired::default(), stop: stop.clone() };
        (Board::new(Clock::new(Source::Virtual, Idle::Jump, 1_000_000), devices, connections), typed, stop)
    }

    #[test]
    fn an_idle_machine_jumps_to_its_next_event() {
        let (mut board, _typed, _) = board();
        board.devices.io_write(0x43, 1, 0x34, 0); // 8254, channel 0, rate generator
        board.devices.io_write(0x40, 1, 0, 0);
        board.devices.io_write(0x40, 1, 0, 0);
        let at = board.devices.next_event().expect("the timer runs");
        assert_eq!(board.idle(None), None);
        assert_eq!((board.clock.now_ns(), board.retired()), (at, 0));
    }

    #[test]
    fn an_idle_machine_ends_when_neither_a_device_nor_a_user_can_wake_it() {
        let (mut board, typed, _) = board();
        assert_eq!(board.idle(None), None);
        drop(typed);
        assert_eq!(board.idle(None), None);
        assert_eq!(board.idle(None), Some(End::Halted));
    }

    #[test]
    fn a_timer_that_never_expires_wakes_nobody() {
        let (mut board, typed, _) = board();
        drop(typed);
        let apic = board.devices.apic_mut(0);
        for (register, value) in [(0xf0, 0x1ff), (0x320, 2 << 17 | 0x40)] {
            let _ = apic.write_memory(register, 4, value, 0, 0);
        }
        apic.set_tsc_deadline(u64::MAX, u64::MAX, 0);
        assert_eq!(board.devices.next_event(), Some(u64::MAX));
        board.idle(None);
        assert_eq!((board.idle(None), board.clock.now_ns()), (Some(End::Halted), 0));
    }

    #[test]
    fn a_request_to_end_is_heeded() {
        let (mut board, _typed, stop) = board();
        assert_eq!(board.poll(), None);
        stop.request(StopReason::User);
        assert_eq!(board.poll(), Some(End::Stopped(StopReason::User)));
    }

    #[test]
    fn input_reaches_the_serial_port_and_what_has_no_room_waits() {
        let (mut board, typed, _) = board();
        board.devices.io_write(0x3fa, 1, 1, 0); // FIFOs on
        b"0123456789abcdefXYZ".iter().for_each(|byte| typed.send(*byte).unwrap());
        let mut received = Vec::new();
        for _ in 0..3 {
            assert_eq!(board.poll(), None);
            while board.devices.io_read(0x3fd, 1, 0) & 1 != 0 {
                received.push(board.devices.io_read(0x3f8, 1, 0) as u8);
            }
        }
        assert_eq!(received, b"0123456789abcdefXYZ");
    }
}

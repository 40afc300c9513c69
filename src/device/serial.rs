//! A 16550A UART on COM1. National Semiconductor, "PC16550D Universal Asynchronous Receiver/Transmitter with
//! FIFOs", data sheet.
//!
//! The transmitter is infinitely fast: it is empty again as soon as it is written.

use std::collections::VecDeque;
use std::io::{self, Write};
use vmcs12::bits;

const FIFO_SIZE: usize = 16;
/// Bytes that the console may wait for before they are written.
const BUFFER_SIZE: usize = 4096;
/// RX FIFO interrupt trigger levels, by FCR bits 7:6.
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

bits! {
    /// Interrupt enable register.
    pub struct InterruptEnable: u8 {
        RECEIVED     0 bool;
        EMPTY        1 bool;
        LINE_STATUS  2 bool;
        MODEM_STATUS 3 bool;
    }
}

bits! {
    /// FIFO control register.
    pub struct FifoControl: u8 {
        ENABLE         0   bool;
        CLEAR_RECEIVER 1   bool;
        TRIGGER        7:6 u8;
    }
}

bits! {
    /// MODEM control register.
    pub struct ModemControl: u8 {
        DTR  0 bool;
        RTS  1 bool;
        OUT1 2 bool;
        OUT2 3 bool;
        LOOP 4 bool;
    }
}

const DIVISOR_LATCH: u8 = 0x80;

/// Line status: data ready; overrun; the transmitter holding register and the transmitter are empty.
mod line_status {
    pub const DATA_READY: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const EMPTY: u8 = 0x60;
}

/// Interrupt identification, in order of priority.
mod identification {
    pub const LINE_STATUS: u8 = 0x06;
    pub const RECEIVED: u8 = 0x04;
    pub const TIMEOUT: u8 = 0x0c;
    pub const EMPTY: u8 = 0x02;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const FIFOS: u8 = 0xc0;
}

/// Modem status: CTS, DSR and DCD of a terminal that is there.
const CONNECTED: u8 = 0xb0;
/// The deltas of CTS, DSR, and DCD are bits 0, 1 and 3; bit 2 is the trailing edge of RI.
const RING: u8 = 0x40;

/// The UART.
pub struct Serial {
    interrupt_enable: InterruptEnable,
    fifo: FifoControl,
    line_control: u8,
    modem_control: ModemControl,
    divisor: [u8; 2],
    scratch: u8,
    received: VecDeque<u8>,
    overrun: bool,
    empty_pending: bool,
    modem_deltas: u8,
    console: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    failure: Option<io::Error>,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").field("received", &self.received.len()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A UART after reset that writes to `console`: at each end of a line, when many bytes have come together,
    /// and with [`flush`](Self::flush).
    #[must_use]
    pub fn new(console: Box<dyn Write + Send>) -> Self {
        Self {
            interrupt_enable: InterruptEnable(0),
            fifo: FifoControl(0),
            line_control: 0,
            modem_control: ModemControl(0),
            divisor: [12, 0],
            scratch: 0,
            received: VecDeque::with_capacity(FIFO_SIZE),
            overrun: false,
            empty_pending: false,
            modem_deltas: 0,
            console,
            buffer: Vec::with_capacity(BUFFER_SIZE),
            failure: None,
        }
    }

    fn latches_divisor(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo.get(FifoControl::ENABLE) { FIFO_SIZE } else { 1 }
    }

    /// Takes what fits into the receiver; returns how many bytes that were.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.capacity().saturating_sub(self.received.len()));
        self.received.extend(&bytes[..taken]);
        taken
    }

    /// How many bytes [`receive`](Self::receive) would take.
    #[must_use]
    pub fn room(&self) -> usize {
        self.capacity().saturating_sub(self.received.len())
    }

    /// Is there something that [`flush`](Self::flush) would write?
    #[must_use]
    pub fn has_unwritten(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Writes what is buffered to the console.
    ///
    /// # Errors
    /// The console's, also those of earlier writes.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_out();
        self.failure.take().map_or(Ok(()), Err)
    }

    fn write_out(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let written = self.console.write_all(&self.buffer).and_then(|()| self.console.flush());
        self.buffer.clear();
        if let Err(failure) = written {
            self.failure.get_or_insert(failure);
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.empty_pending = true;
        if self.modem_control.get(ModemControl::LOOP) {
            self.overrun |= self.receive(&[byte]) == 0;
            return;
        }
        self.buffer.push(byte);
        if byte == b'\n' || self.buffer.len() >= BUFFER_SIZE {
            self.write_out();
        }
    }

    /// Reads register `offset` of eight.
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 | 1 if self.latches_divisor() => self.divisor[usize::from(offset)],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.interrupt_enable.0,
            2 => self.read_identification(),
            3 => self.line_control,
            4 => self.modem_control.0,
            5 => self.read_line_status(),
            6 => self.modem_lines() | std::mem::take(&mut self.modem_deltas),
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes register `offset` of eight.
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 | 1 if self.latches_divisor() => self.divisor[usize::from(offset)] = value,
            0 => self.transmit(value),
            1 => self.write_interrupt_enable(value),
            2 => self.write_fifo_control(value),
            3 => self.line_control = value,
            4 => self.write_modem_control(value),
            7 => self.scratch = value,
            _ => {} // line and modem status cannot be written
        }
    }

    fn write_interrupt_enable(&mut self, value: u8) {
        let new = InterruptEnable(value & !InterruptEnable::RESERVED);
        // Enabling the interrupt while the transmitter is empty raises it.
        if new.get(InterruptEnable::EMPTY) && !self.interrupt_enable.get(InterruptEnable::EMPTY) {
            self.empty_pending = true;
        }
        self.interrupt_enable = new;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let new = FifoControl(value);
        let toggles = new.get(FifoControl::ENABLE) != self.fifo.get(FifoControl::ENABLE);
        if toggles || new.get(FifoControl::CLEAR_RECEIVER) {
            self.received.clear();
        }
        self.fifo = new;
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = ModemControl(value & !ModemControl::RESERVED);
        let changed = before ^ self.modem_lines();
        let ring_ended = before & RING & changed;
        self.modem_deltas |= (changed & !RING | ring_ended) >> 4;
    }

    /// Bits 7:4 of the modem status: the terminal's lines, or in loopback OUT2, OUT1, DTR and RTS.
    fn modem_lines(&self) -> u8 {
        let control = self.modem_control;
        if !control.get(ModemControl::LOOP) {
            return CONNECTED;
        }
        u8::from(control.get(ModemControl::RTS)) << 4
            | u8::from(control.get(ModemControl::DTR)) << 5
            | u8::from(control.get(ModemControl::OUT1)) << 6
            | u8::from(control.get(ModemControl::OUT2)) << 7
    }

    fn read_line_status(&mut self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { line_status::DATA_READY };
        let overrun = if std::mem::take(&mut self.overrun) { line_status::OVERRUN } else { 0 };
        line_status::EMPTY | ready | overrun
    }

    fn identification(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable.get(bit);
        let trigger = match self.fifo.get(FifoControl::ENABLE) {
            true => TRIGGER_LEVELS[usize::from(self.fifo.get(FifoControl::TRIGGER))],
            false => 1,
        };
        if enabled(InterruptEnable::LINE_STATUS) && self.overrun {
            identification::LINE_STATUS
        } else if enabled(InterruptEnable::RECEIVED) && self.received.len() >= trigger {
            identification::RECEIVED
        } else if enabled(InterruptEnable::RECEIVED) && !self.received.is_empty() {
            // The four character times of the time-out have always passed.
            identification::TIMEOUT
        } else if enabled(InterruptEnable::EMPTY) && self.empty_pending {
            identification::EMPTY
        } else if enabled(InterruptEnable::MODEM_STATUS) && self.modem_deltas != 0 {
            identification::MODEM_STATUS
        } else {
            identification::NONE
        }
    }

    /// Reading the register clears the transmitter interrupt if it is the one that is shown.
    fn read_identification(&mut self) -> u8 {
        let shown = self.identification();
        if shown == identification::EMPTY {
            self.empty_pending = false;
        }
        let fifos = if self.fifo.get(FifoControl::ENABLE) { identification::FIFOS } else { 0 };
        shown | fifos
    }

    /// The level of the interrupt line, which a PC gates with OUT2.
    #[must_use]
    pub fn irq(&self) -> bool {
        let gate = self.modem_control;
        gate.get(ModemControl::OUT2)
            && !gate.get(ModemControl::LOOP)
            && self.identification() != identification::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart() -> Serial {
        let mut uart = Serial::new(Box::new(io::sink()));
        uart.write(4, 0x08);
        uart
    }

    #[test]
    fn output_goes_out_by_line() {
        let sink = Sink::default();
        let mut uart = Serial::new(Box::new(sink.clone()));
        let shown = || String::from_utf8(sink.0.lock().expect("not poisoned").clone()).expect("text");
        b"one\ntwo".iter().for_each(|byte| uart.write(0, *byte));
        assert_eq!(shown(), "one\n");
        uart.flush().expect("a sink never fails");
        assert_eq!(shown(), "one\ntwo");
    }

    #[test]
    fn a_console_that_is_gone_is_reported_by_flush() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut uart = Serial::new(Box::new(Gone));
        uart.write(0, b'\n');
        assert_eq!(uart.flush().map_err(|e| e.kind()), Err(io::ErrorKind::BrokenPipe));
        assert!(uart.flush().is_ok());
    }

    #[test]
    fn the_transmitter_interrupt_comes_with_enabling_and_goes_with_reading_iir() {
        let mut uart = uart();
        assert!(!uart.irq());
        uart.write(1, 2);
        assert!(uart.irq());
        assert_eq!(uart.read(2), 2);
        assert!(!uart.irq());
        assert_eq!(uart.read(2), 1);
        uart.write(0, b'x');
        assert!(uart.irq());
        uart.write(1, 0);
        assert!(!uart.irq());
    }

    #[test]
    fn the_receiver_interrupts_until_it_is_empty() {
        let mut uart = uart();
        uart.write(2, 0x81);
        uart.write(1, 1);
        assert_eq!(uart.receive(b"12345678"), 8);
        assert_eq!(uart.read(2), 0xc4);
        assert_eq!(uart.read(0), b'1');
        assert_eq!(uart.read(2), 0xcc, "below the trigger level: time-out");
        (0..7).for_each(|_| _ = uart.read(0));
        assert!(!uart.irq());
        assert_eq!(uart.read(5), 0x60);
    }

    #[test]
    fn the_receiver_takes_what_fits() {
        let mut uart = uart();
        assert_eq!(uart.receive(b"abc"), 1);
        assert_eq!(uart.room(), 0);
        uart.write(2, 1);
        assert_eq!(uart.receive(&[0; 20]), 16);
        uart.write(2, 3);
        assert_eq!(uart.room(), 16);
    }

    #[test]
    fn loopback_connects_the_modem_lines_and_the_data() {
        let mut uart = uart();
        uart.write(4, 0x1a);
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        uart.write(0, b'z');
        assert_eq!((uart.read(5) & 1, uart.read(0)), (1, b'z'));
        assert!(!uart.irq(), "OUT2 is not connected in loopback");
        uart.write(4, 0x08);
        assert_eq!(uart.read(6) & 0xf0, 0xb0);
    }

    #[test]
    fn modem_deltas_are_cleared_by_reading() {
        let mut uart = uart();
        uart.write(1, 8);
        uart.write(4, 0x10);
        uart.write(4, 0x08);
        assert!(uart.irq());
        assert_eq!(uart.read(2), 0);
        assert_eq!(uart.read(6), 0xb0 | 0x0b);
        assert_eq!(uart.read(6), 0xb0);
        assert!(!uart.irq());
    }

    #[test]
    fn without_out2_there_is_no_interrupt() {
        let mut uart = uart();
        uart.write(1, 2);
        uart.write(4, 0);
        assert!(!uart.irq());
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_enable() {
        let mut uart = uart();
        uart.write(3, 0x83);
        uart.write(0, 1);
        uart.write(1, 0);
        assert_eq!((uart.read(0), uart.read(1)), (1, 0));
        uart.write(3, 0x03);
        assert_eq!(uart.read(1), 0);
        assert_eq!(uart.read(3), 0x03);
    }

    #[test]
    fn a_16550a_is_recognised() {
        let mut uart = uart();
        uart.write(7, 0x5a);
        assert_eq!(uart.read(7), 0x5a);
        uart.write(1, 0xff);
        assert_eq!(uart.read(1), 0x0f);
        uart.write(1, 0);
        uart.write(2, 1);
        assert_eq!(uart.read(2) & 0xc0, 0xc0);
    }
}

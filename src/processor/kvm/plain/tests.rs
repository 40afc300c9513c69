//! Payloads of a few instructions in a whole PC. They need /dev/kvm and say so where there is none.

use std::io::{self, Write};
use std::sync::Mutex;
use std::thread;

use crossbeam::channel::Sender;
use iced_x86::code_asm::*;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};
use vmcs12::arch::cr::cr0;
use vmcs12::arch::segment::{AccessRights, Segment};

use super::*;
use crate::config::{Retired, Stop};
use crate::processor::kvm::registers::segment;

const CODE: u64 = 0x1000;
const GDT: u64 = 0x500;
const MEMORY: u64 = 4 << 20;

/// What a test holds of a console.
struct Outside {
    input: Sender<u8>,
    output: Shown,
    stop: Stop,
}

#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Shown {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no test panics with it")).into_owned()
    }
}

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console() -> (Console, Outside) {
    let (sender, input) = channel::unbounded();
    let (output, stop) = (Shown::default(), Stop::default());
    let console =
        Console { input, output: Box::new(output.clone()), retired: Retired::default(), stop: stop.clone() };
    (console, Outside { input: sender, output, stop })
}

/// A PC whose first vCPU starts with `code` in flat 32-bit mode at CPL 0, interrupts off, no IDT.
fn pc_with(
    test: &str,
    cpus: u32,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Option<Pc> {
    let kvm = host::kvm_or_skip(test)?;
    let pc = Pc::new(&kvm, MEMORY, cpus).expect("a PC");
    let mut assembler = CodeAssembler::new(32).expect("32 is a bitness");
    build(&mut assembler).expect("the operands exist");
    let code = assembler.assemble(CODE).expect("the code is encodable");
    pc.vm.ram().memory().write_slice(&code, GuestAddress(CODE)).expect("the code fits");
    for (at, descriptor) in [(GDT + 8, 0x00cf_9b00_0000_ffff_u64), (GDT + 16, 0x00cf_9300_0000_ffff)] {
        pc.vm.ram().memory().write_obj(descriptor, GuestAddress(at)).expect("the GDT fits");
    }
    let regs = kvm_regs { rip: CODE, rsp: 0x8000, rflags: 2, ..Default::default() };
    pc.vcpus[0].set_registers(&regs, flat_32_bit).expect("the registers are valid");
    Some(pc)
}

fn flat_32_bit(sregs: &mut kvm_sregs) {
    let flat = |selector, rights| {
        segment(Segment { base: 0, limit: 0xffff_ffff, selector, rights: AccessRights(rights) })
    };
    sregs.cr0 |= cr0::PE;
    sregs.cs = flat(8, 0xc09b);
    let data = flat(16, 0xc093);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
}

/// What a payload ends with, within a time that is long for any of them.
fn end_of(pc: Pc, console: Console) -> RunOutcome {
    start(pc, console, Some(Duration::from_secs(60))).expect("KVM goes on")
}

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

macro_rules! ends {
    ($($(#[$meta:meta])* $name:ident($a:ident) $body:block => $end:expr;)*) => { $(
        $(#[$meta])*
        #[test]
        fn $name() {
            let Some(pc) = pc_with(stringify!($name), 1, |$a| $body) else { return };
            let (console, _outside) = console();
            assert_eq!(end_of(pc, console).end, $end);
        }
    )* };
}

ends! {
    the_debug_exit_port_ends_the_run(a) { out(a, 0xf4, 5) } => End::DebugExit(5);
    soft_off_is_power_off(a) {
        a.mov(edx, 0x604)?;
        a.mov(eax, 5 << 10 | 1 << 13)?;
        a.out(dx, ax)
    } => End::PowerOff;
    the_keyboard_controller_resets(a) { out(a, 0x64, 0xfe) } => End::Reset;
    the_reset_register_resets(a) { out(a, 0xcf9, 6) } => End::Reset;
    an_exception_without_an_idt_is_a_triple_fault(a) { a.ud2() } => End::TripleFault;
}

#[test]
fn what_the_guest_writes_to_the_serial_port_is_shown() {
    let build = |a: &mut CodeAssembler| {
        for byte in *b"hello\nand" {
            out(a, 0x3f8, byte.into())?;
        }
        out(a, 0xf4, 0)
    };
    let Some(pc) = pc_with("what_the_guest_writes_to_the_serial_port_is_shown", 1, build) else { return };
    let (console, outside) = console();
    let outcome = end_of(pc, console);
    assert_eq!(outcome.end, End::DebugExit(0));
    assert_eq!(outside.output.text(), "hello\nand");
    assert_eq!(outcome.counters.from_l1.total(), 10);
    assert_eq!(outcome.last_exits.len(), 11, "the exits and where the vCPU was");
}

#[test]
fn a_prompt_is_shown_although_its_line_has_no_end() {
    let build = |a: &mut CodeAssembler| {
        out(a, 0x3f8, b'>'.into())?;
        a.hlt()
    };
    let Some(pc) = pc_with("a_prompt_is_shown_although_its_line_has_no_end", 1, build) else { return };
    let (console, outside) = console();
    let running = thread::spawn(move || end_of(pc, console));
    let shown = (0..1000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        outside.output.text() == ">"
    });
    outside.stop.request(StopReason::User);
    assert_eq!(running.join().expect("no panic").end, End::Stopped(StopReason::User));
    assert!(shown);
}

#[test]
fn a_guest_that_loops_ends_with_the_time() {
    let build = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    };
    let Some(pc) = pc_with("a_guest_that_loops_ends_with_the_time", 1, build) else { return };
    let (console, _outside) = console();
    let outcome = start(pc, console, Some(Duration::from_millis(50))).expect("KVM goes on");
    assert_eq!(outcome.end, End::Stopped(StopReason::Timeout));
}

#[test]
fn vcpus_that_wait_for_ever_end_on_demand() {
    let Some(pc) = pc_with("vcpus_that_wait_for_ever_end_on_demand", 2, |a| a.hlt()) else { return };
    let (console, outside) = console();
    outside.stop.request(StopReason::Signal(15));
    assert_eq!(end_of(pc, console).end, End::Stopped(StopReason::Signal(15)));
}

#[test]
fn more_input_than_the_port_has_room_for_arrives_in_order() {
    let build = |a: &mut CodeAssembler| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(edx, 0x3fd)?;
        a.in_(al, dx)?;
        a.test(al, 1)?; // data ready
        a.je(again)?;
        a.mov(edx, 0x3f8)?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'.'))?;
        a.je(done)?;
        a.out(dx, al)?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        out(a, 0xf4, 0)
    };
    let Some(pc) = pc_with("more_input_than_the_port_has_room_for_arrives_in_order", 1, build) else {
        return;
    };
    let (console, outside) = console();
    let text: String = ('a'..='z').cycle().take(100).collect();
    for byte in text.bytes().chain([b'.']) {
        outside.input.send(byte).expect("the console is there");
    }
    assert_eq!(end_of(pc, console).end, End::DebugExit(0));
    assert_eq!(outside.output.text(), text);
}

/// A handler at `VECTOR` of a one-entry IDT, the first 8259 at vectors from 0x20 up with only `line` unmasked.
fn prepare_interrupt(a: &mut CodeAssembler, line: u32, handler: u32) -> Result<(), IcedError> {
    const IDT: u32 = 0x4000;
    let vector = 0x20 + line;
    a.mov(dword_ptr(IDT + vector * 8), 8 << 16 | (handler & 0xffff))?;
    a.mov(dword_ptr(IDT + vector * 8 + 4), (handler & 0xffff_0000) | 0x8e00)?;
    a.mov(word_ptr(0x3ff0), 0x7ff)?;
    a.mov(dword_ptr(0x3ff2), IDT)?;
    a.lidt(dword_ptr(0x3ff0))?;
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xff & !(1 << line))]
    {
        out(a, port, value)?;
    }
    Ok(())
}

const HANDLER: u32 = 0x3000;

/// Puts a handler at HANDLER that ends the run with this value.
fn write_handler(pc: &Pc, value: u8) {
    let code = [0xb0, value, 0xe6, 0xf4]; // mov al, value; out 0xf4, al
    pc.vm.ram().memory().write_slice(&code, GuestAddress(HANDLER.into())).expect("the code fits");
}

#[test]
fn input_interrupts_a_guest_that_halts() {
    let build = |a: &mut CodeAssembler| {
        prepare_interrupt(a, 4, HANDLER)?;
        out(a, 0x3f9, 1)?; // interrupt on received data
        out(a, 0x3fc, 8)?; // OUT2: the interrupt gate
        a.sti()?;
        a.hlt()?;
        out(a, 0xf4, 1)
    };
    let Some(pc) = pc_with("input_interrupts_a_guest_that_halts", 1, build) else { return };
    write_handler(&pc, 7);
    let (console, outside) = console();
    outside.input.send(b'x').expect("the console is there");
    assert_eq!(end_of(pc, console).end, End::DebugExit(7));
}

#[test]
fn the_timer_in_the_kernel_interrupts_a_guest_that_halts() {
    let build = |a: &mut CodeAssembler| {
        prepare_interrupt(a, 0, HANDLER)?;
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            out(a, port, value)?; // channel 0, rate generator, 1 kHz
        }
        a.sti()?;
        a.hlt()?;
        out(a, 0xf4, 1)
    };
    let Some(pc) = pc_with("the_timer_in_the_kernel_interrupts_a_guest_that_halts", 1, build) else { return };
    write_handler(&pc, 9);
    let (console, _outside) = console();
    assert_eq!(end_of(pc, console).end, End::DebugExit(9));
}

#[test]
fn the_rtc_interrupts_at_its_rate() {
    let build = |a: &mut CodeAssembler| {
        prepare_interrupt(a, 2, HANDLER)?;
        // The second 8259, its lines at vectors from 0x28 up; the RTC is its line 0.
        for (port, value) in [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 0x02), (0xa1, 0x01), (0xa1, 0xfe)] {
            out(a, port, value)?;
        }
        a.mov(dword_ptr(0x4000 + 0x28 * 8), 8 << 16 | HANDLER)?;
        a.mov(dword_ptr(0x4000 + 0x28 * 8 + 4), 0x8e00)?;
        for (port, value) in [(0x70, 0x0a), (0x71, 0x26), (0x70, 0x0b), (0x71, 0x42)] {
            out(a, port, value)?; // periodic interrupt, 1024 Hz
        }
        a.sti()?;
        a.hlt()?;
        out(a, 0xf4, 1)
    };
    let Some(pc) = pc_with("the_rtc_interrupts_at_its_rate", 1, build) else { return };
    write_handler(&pc, 11);
    let (console, _outside) = console();
    assert_eq!(end_of(pc, console).end, End::DebugExit(11));
}

#[test]
fn a_second_vcpu_starts_by_init_and_sipi() {
    const NAME: &str = "a_second_vcpu_starts_by_init_and_sipi";
    const ICR_LOW: u64 = 0xfee0_0300;
    const ICR_HIGH: u64 = 0xfee0_0310;
    if !host::has_virtualization() {
        let _ = writeln!(io::stderr(), "SKIPPED {NAME}: a KVM that emulates all instructions ignores INIT");
        return;
    }
    let build = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(ICR_HIGH), 1 << 24)?;
        a.mov(dword_ptr(ICR_LOW), 0x4500)?; // INIT
        a.mov(dword_ptr(ICR_LOW), 0x4600 | HANDLER >> 12)?; // start-up at the handler's page, in real mode
        a.hlt()
    };
    let Some(pc) = pc_with(NAME, 2, build) else { return };
    write_handler(&pc, 13);
    let (console, _outside) = console();
    assert_eq!(end_of(pc, console).end, End::DebugExit(13));
}

#[test]
fn vcpus_run_beside_each_other_and_end_together() {
    // Each waits for the other's mark.
    const MARKS: u64 = 0x5000;
    let build = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(byte_ptr(esi + MARKS), 1)?;
        a.set_label(&mut again)?;
        a.cmp(byte_ptr(edi + MARKS), 1)?;
        a.jne(again)?;
        out(a, 0xf4, 3)
    };
    let Some(pc) = pc_with("vcpus_run_beside_each_other_and_end_together", 2, build) else { return };
    for (vcpu, (own, other)) in pc.vcpus.iter().zip([(0, 1), (1, 0)]) {
        let regs = kvm_regs { rip: CODE, rsi: own, rdi: other, rflags: 2, ..Default::default() };
        vcpu.set_registers(&regs, flat_32_bit).expect("the registers are valid");
        let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        vcpu.fd().set_mp_state(running).expect("a state of vCPUs");
    }
    let (console, _outside) = console();
    assert_eq!(end_of(pc, console).end, End::DebugExit(3));
}

#[test]
fn ram_that_does_not_fit_below_the_device_hole_is_above_4_gib() {
    let Some(kvm) = host::kvm_or_skip("ram_that_does_not_fit_below_the_device_hole_is_above_4_gib") else {
        return;
    };
    let pc = Pc::new(&kvm, 5 << 30, 1).expect("a PC");
    assert_eq!((pc.memory_below_4g(), pc.memory_above_4g()), (3 << 30, 2 << 30));
}

#[test]
fn too_many_vcpus_are_refused() {
    let Some(kvm) = host::kvm_or_skip("too_many_vcpus_are_refused") else { return };
    for asked in [0, 1_000_000] {
        assert!(matches!(Pc::new(&kvm, MEMORY, asked), Err(KvmError::TooManyVcpus { .. })));
    }
}

//! Runs L1s on the whole stack: software processor, nested engine, L0's run loop and devices.

use crate::asm;
use crate::code::{Code, msr};
use crate::image;
use crate::place::*;
use crossbeam::channel::{self, RecvTimeoutError};
use iced_x86::code_asm::*;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use testudo::config::{
    ClockKind, Console, CpuModel, End, Image, Nested, ProcessorKind, Retired, RunConfig, RunOutcome, Stop,
    StopReason,
};
use testudo::machine;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::rflags;
use vmcs12::control::*;
use vmcs12::field::table::*;

/// The processor, unless a test is about another.
const PROFILE: &str = "cascade_lake_sp";
/// No payload here needs longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOCKED_WITH_VMX: u32 = 0x5;
const WRITE_BACK_4_LEVELS: u64 = 6 | 3 << 3;
/// EPTP of [`EPT_PML4`].
pub const EPTP_VALUE: u64 = EPT_PML4 | WRITE_BACK_4_LEVELS;
pub const NO_LINK: u64 = u64::MAX;

/// An L1 that has not executed VMXON; CR4.VMXE and IA32_FEATURE_CONTROL allow it.
pub fn outside(l1: impl FnOnce(&mut Code)) -> Vec<u64> {
    outside_on(PROFILE, l1)
}

/// As [`outside`], on another processor.
pub fn outside_on(profile: &str, l1: impl FnOnce(&mut Code)) -> Vec<u64> {
    run(
        profile,
        |code| {
            enable_vmx(code);
            l1(code);
        },
        |_| {},
    )
}

/// An L1 in VMX operation, without a current VMCS.
pub fn root(l1: impl FnOnce(&mut Code)) -> Vec<u64> {
    outside(|code| {
        enter_operation(code);
        l1(code);
    })
}

/// An L1 whose current VMCS is ready for an entry, and its L2, which ends in VMCALL.
pub fn guest(l1: impl FnOnce(&mut Code), l2: impl FnOnce(&mut Code)) -> Vec<u64> {
    guest_on(PROFILE, l1, l2)
}

/// As [`guest`], on another processor.
pub fn guest_on(profile: &str, l1: impl FnOnce(&mut Code), l2: impl FnOnce(&mut Code)) -> Vec<u64> {
    run(profile, |code| prepare(code, l1), l2)
}

/// How the run of an L1 ends that does not end by itself.
pub fn end_of_guest(l1: impl FnOnce(&mut Code), l2: impl FnOnce(&mut Code)) -> End {
    run_to_end(PROFILE, |code| prepare(code, l1), l2).1.end
}

fn prepare(code: &mut Code, l1: impl FnOnce(&mut Code)) {
    enable_vmx(code);
    enter_operation(code);
    put_revision(code, VMCS);
    code.vmclear(VMCS).vmptrld(VMCS);
    set_up(code);
    l1(code);
}

/// A payload from power-on, and what it logged.
fn run(profile: &str, l1: impl FnOnce(&mut Code), l2: impl FnOnce(&mut Code)) -> Vec<u64> {
    let (log, outcome) = run_to_end(profile, l1, l2);
    assert_eq!(
        outcome.end,
        End::DebugExit(0),
        "{profile}: log {log:#x?}\nlast exits {:#?}",
        outcome.last_exits
    );
    log
}

fn run_to_end(
    profile: &str,
    l1: impl FnOnce(&mut Code),
    l2: impl FnOnce(&mut Code),
) -> (Vec<u64>, RunOutcome) {
    let output = Output::default();
    // Nothing will be typed: who waits for an interrupt that no device has waits for ever.
    let (_, input) = channel::bounded(1);
    let stop = Stop::default();
    let console =
        Console { input, output: Box::new(output.clone()), retired: Retired::default(), stop: stop.clone() };
    let (done, is_done) = channel::bounded::<()>(1);
    let watch = std::thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            stop.request(StopReason::Timeout);
        }
    });
    let outcome = machine::run(&config(profile, image::build(l1, l2)), console).expect("the machine runs");
    drop(done);
    watch.join().expect("the watch ends");
    (output.items(), outcome)
}

fn config(profile: &str, bytes: Vec<u8>) -> RunConfig {
    RunConfig {
        kernel: Image { name: "L1".into(), bytes: Arc::new(bytes) },
        initrd: None,
        modules: Vec::new(),
        cmdline: String::new(),
        cpus: 1,
        memory: RAM,
        cpu: CpuModel { profile: profile.into(), changes: Vec::new() },
        processor: ProcessorKind::Soft,
        nested: Nested::On,
        clock: ClockKind::Virtual,
        seed: 1,
        timeout: None,
    }
}

/// What comes out of the serial port.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn items(&self) -> Vec<u64> {
        let bytes = self.0.lock().expect("nobody panicked");
        bytes.chunks_exact(8).map(|item| u64::from_le_bytes(item.try_into().expect("8 bytes"))).collect()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// SDM Vol. 3, "Enabling and Entering VMX Operation".
fn enable_vmx(code: &mut Code) {
    let mut locked = code.label();
    code.rdmsr(msr::FEATURE_CONTROL);
    asm!(code; test(eax, 1); jnz(locked); mov(eax, LOCKED_WITH_VMX); wrmsr());
    code.place(&mut locked);
    asm!(code; mov(rax, cr4); or(rax, cr4::VMXE as i32); mov(cr4, rax));
}

/// Writes the revision identifier into a region.
pub fn put_revision(code: &mut Code, region: u64) {
    code.rdmsr(msr::VMX_BASIC);
    asm!(code; and(eax, 0x7fff_ffff); mov(ecx, region as u32); mov(dword_ptr(rcx), eax));
}

fn enter_operation(code: &mut Code) {
    put_revision(code, VMXON_REGION);
    code.vmxon(VMXON_REGION);
}

/// Writes every field that an entry to a 64-bit L2 with EPT needs.
pub fn set_up(code: &mut Code) {
    controls(code);
    host_state(code);
    guest_state(code);
}

/// The controls wanted, and those that must be 1. SDM Vol. 3, "Algorithms for Determining VMX Capabilities".
fn controls(code: &mut Code) {
    let words = [
        (Word::PinBased, msr::VMX_TRUE_PINBASED, 0),
        (Word::Primary, msr::VMX_TRUE_PRIMARY, ACTIVATE_SECONDARY_CONTROLS.mask()),
        (Word::Secondary, msr::VMX_SECONDARY, ENABLE_EPT.mask()),
        (Word::Exit, msr::VMX_TRUE_EXIT, HOST_ADDRESS_SPACE_SIZE.mask()),
        (Word::Entry, msr::VMX_TRUE_ENTRY, IA_32E_MODE_GUEST.mask()),
    ];
    for (word, capability, wanted) in words {
        asm!(code; mov(ecx, capability); rdmsr(); or(eax, wanted as u32); and(eax, edx);
            mov(ecx, word.field().row().encoding); vmwrite(rcx, rax));
    }
    code.write(EPTP, EPTP_VALUE).write(VMCS_LINK_POINTER, NO_LINK);
}

/// The host state that L1 is in. HOST_RIP and HOST_RSP are written before each entry.
fn host_state(code: &mut Code) {
    asm!(code; mov(rax, cr0));
    code.write_rax(HOST_CR0);
    asm!(code; mov(rax, cr3));
    code.write_rax(HOST_CR3);
    asm!(code; mov(rax, cr4));
    code.write_rax(HOST_CR4);
    for selector in [HOST_ES_SELECTOR, HOST_SS_SELECTOR, HOST_DS_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR]
    {
        code.write(selector, DATA_SELECTOR.into());
    }
    code.write(HOST_CS_SELECTOR, CODE_SELECTOR.into()).write(HOST_TR_SELECTOR, TASK_SELECTOR.into());
    code.write(HOST_TR_BASE, TSS).write(HOST_GDTR_BASE, GDT).write(HOST_IDTR_BASE, IDT_L1);
}

const DATA_RIGHTS: u64 = 0xc093;
const CODE_RIGHTS: u64 = 0xa09b;
const BUSY_TASK_RIGHTS: u64 = 0x8b;
const UNUSABLE: u64 = 0x1_0000;

/// A 64-bit L2 at CPL 0 with L1's page tables and segments and an IDT of its own.
fn guest_state(code: &mut Code) {
    #[rustfmt::skip]
    let data = [
        (GUEST_ES_SELECTOR, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
        (GUEST_SS_SELECTOR, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
        (GUEST_DS_SELECTOR, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
        (GUEST_FS_SELECTOR, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
        (GUEST_GS_SELECTOR, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
    ];
    for (selector, limit, rights) in data {
        code.write(selector, DATA_SELECTOR.into()).write(limit, 0xffff_ffff).write(rights, DATA_RIGHTS);
    }
    code.write(GUEST_CS_SELECTOR, CODE_SELECTOR.into()).write(GUEST_CS_LIMIT, 0xffff_ffff);
    code.write(GUEST_CS_ACCESS_RIGHTS, CODE_RIGHTS).write(GUEST_LDTR_ACCESS_RIGHTS, UNUSABLE);
    code.write(GUEST_TR_SELECTOR, TASK_SELECTOR.into()).write(GUEST_TR_BASE, TSS);
    code.write(GUEST_TR_LIMIT, 0x67).write(GUEST_TR_ACCESS_RIGHTS, BUSY_TASK_RIGHTS);
    code.write(GUEST_GDTR_BASE, GDT).write(GUEST_GDTR_LIMIT, 0x7ff);
    code.write(GUEST_IDTR_BASE, IDT_L2).write(GUEST_IDTR_LIMIT, 0xfff);
    asm!(code; mov(rax, cr0));
    code.write_rax(GUEST_CR0);
    asm!(code; mov(rax, cr4));
    code.write_rax(GUEST_CR4);
    code.write(GUEST_CR3, PML4).write(GUEST_DR7, 0x400).write(GUEST_RFLAGS, rflags::FIXED);
    code.write(GUEST_RSP, STACK_L2).write(GUEST_RIP, CODE_L2);
}

//! The software processor: the same code at the same linear addresses, at CPL 3 with paging on.

use super::guest::{Guest, long_mode, map};
use super::layout::*;
use super::mode::{DATA_SELECTOR, Mode};
use super::state::{Outcome, Registers};
use cpu::{Cpu, Memory, Model, Region, Time};
use std::ptr::NonNull;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::event::{RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::table::*;
use vmcs12::field::{Vmcs, VmcsSet};

const TABLES: u64 = 0x1_0000;
const PML4: u64 = 0x1000;
const DIRECTORY_POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PRESENT_USER: u64 = 0b101;
const WRITABLE: u64 = 0b010;
/// Offset of the I/O map base address in a 64-bit TSS.
const IO_MAP_BASE: u64 = 0x66;
/// More than any case executes; string instructions reach a guard page first.
const BUDGET: u64 = 1 << 16;

pub struct Ours {
    guest: Guest,
    window: NonNull<u8>,
    fs_base: u64,
}

impl Ours {
    pub fn new(fs_base: u64) -> Self {
        let window = map(LEN);
        let tables = Region { base: Pa(0), len: TABLES, host: map(TABLES) };
        let region = Region { base: Pa(BASE), len: LEN, host: window };
        // SAFETY: the mappings are never removed.
        let memory = unsafe { Memory::new(vec![tables, region]) };
        write_page_tables(&memory);
        memory.write(Pa(TASK_STATE + IO_MAP_BASE), &u16::MAX.to_le_bytes());
        memory.write(Pa(READ_ONLY), &[READ_ONLY_FILL; 4096]);
        let mut capabilities = vmcs12::implemented::implemented();
        capabilities.physical_width = 52;
        let model = Model { capabilities, physical_width: 46, lacks: cpu::Lacks::default() };
        let current = Box::new(user_mode());
        let vmcs = VmcsSet { current, linked: None, writers: None, shadow_accesses: (0, 0) };
        let cpu = Cpu::new(memory.clone(), model);
        let time = Time { now_ns: 0, tsc_mult_q32: 1 << 32 };
        let guest = Guest { cpu, memory, vmcs, state: CpuState::default(), time };
        Self { guest, window, fs_base }
    }

    pub fn data(&mut self) -> &mut [u8] {
        let at = self.window.as_ptr().wrapping_add((DATA - BASE) as usize);
        // SAFETY: inside the mapping; the processor runs only inside `run`, which takes `&mut self`, too.
        unsafe { std::slice::from_raw_parts_mut(at, DATA_LEN) }
    }

    /// Writes code, as an outsider.
    pub fn write_code(&mut self, at: u64, bytes: &[u8]) {
        self.guest.memory.write(Pa(at), bytes);
    }

    /// Runs the code at `rip` until it traps; also gives the instructions retired.
    pub fn run(&mut self, mode: Mode, registers: &Registers, rip: u64, gs_base: u64) -> (Outcome, u64) {
        let vmcs = &mut self.guest.vmcs.current;
        self.guest.state.gpr = registers.gpr;
        let long = mode == Mode::Bits64;
        let code = rights(11, 3).with(AccessRights::L, long).with(AccessRights::DB, !long);
        vmcs.set(GUEST_CS_SELECTOR, mode.code_selector());
        vmcs.set(GUEST_CS_ACCESS_RIGHTS, code);
        vmcs.set(GUEST_RSP, registers.gpr[4]);
        vmcs.set(GUEST_RIP, rip);
        vmcs.set(GUEST_RFLAGS, registers.rflags);
        vmcs.set(GUEST_FS_BASE, self.fs_base);
        vmcs.set(GUEST_GS_BASE, gs_base);
        let exit = self.guest.run(BUDGET);
        let vmcs = &self.guest.vmcs.current;
        if exit.cause != Cause::Vm(Reason::ExceptionOrNmi) {
            let outcome = Outcome { rip: vmcs.get(GUEST_RIP), vector: u8::MAX, ..Outcome::NONE };
            eprintln!("unexpected exit {:?}", exit.cause);
            return (outcome, exit.retired);
        }
        let event = vmcs.get(EXITING_EVENT_IDENTIFICATION);
        let vector = event.get(RecordedEvent::VECTOR);
        let has_code = event.get(RecordedEvent::HAS_ERROR_CODE);
        let mut gpr = self.guest.state.gpr;
        gpr[4] = vmcs.get(GUEST_RSP);
        let outcome = Outcome {
            registers: Registers { gpr, rflags: vmcs.get(GUEST_RFLAGS) & !rflags::RF },
            rip: vmcs.get(GUEST_RIP),
            vector,
            error_code: if has_code { vmcs.get(EXITING_EVENT_ERROR_CODE) } else { 0 },
            address: if vector == vector::PF { vmcs.get(EXIT_QUALIFICATION) } else { 0 },
            fs_base: vmcs.get(GUEST_FS_BASE),
            gs_base: vmcs.get(GUEST_GS_BASE),
        };
        (outcome, exit.retired)
    }
}

fn write_page_tables(memory: &Memory) {
    let index = |level: u32| (BASE >> (12 + 9 * level) & 511) * 8;
    let next = PRESENT_USER | WRITABLE;
    memory.write_u64(Pa(PML4 + index(3)), DIRECTORY_POINTERS | next);
    memory.write_u64(Pa(DIRECTORY_POINTERS + index(2)), DIRECTORY | next);
    memory.write_u64(Pa(DIRECTORY + index(1)), TABLE | next);
    const NO_EXECUTE: u64 = 1 << 63;
    let pages = |at: u64, len: usize| (at..at + len as u64).step_by(4096);
    let present = |at: u64, bits: u64| {
        memory.write_u64(Pa(TABLE + ((at - BASE) >> 12) * 8), at | PRESENT_USER | bits);
    };
    memory.write_u64(Pa(TABLE + ((TASK_STATE - BASE) >> 12) * 8), TASK_STATE | 1);
    pages(CODE, CODE_LEN).for_each(|at| present(at, WRITABLE));
    pages(DATA, DATA_LEN).for_each(|at| present(at, WRITABLE | NO_EXECUTE));
    pages(READ_ONLY, 4096).for_each(|at| present(at, NO_EXECUTE));
}

fn rights(kind: u8, dpl: u8) -> AccessRights {
    AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, true)
        .with(AccessRights::DPL, dpl)
        .with(AccessRights::P, true)
        .with(AccessRights::G, true)
}

/// Linux's user mode: CPL 3, all exceptions exit.
fn user_mode() -> Vmcs {
    let mut vmcs = long_mode();
    vmcs.set(GUEST_CR3, PML4);
    vmcs.set(GUEST_CR4, vmcs.get(GUEST_CR4) | vmcs12::arch::cr::cr4::FSGSBASE);
    vmcs.set(GUEST_CR0, vmcs.get(GUEST_CR0) | vmcs12::arch::cr::cr0::AM);
    vmcs.set(EXCEPTION_BITMAP, u32::MAX);
    vmcs.set(GUEST_TR_BASE, TASK_STATE);
    for register in [
        SegmentRegister::Es,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ] {
        let fields = register.fields();
        vmcs.set(fields.selector, DATA_SELECTOR);
        vmcs.set(fields.rights, rights(3, 3).with(AccessRights::DB, true));
    }
    for register in [SegmentRegister::Fs, SegmentRegister::Gs] {
        vmcs.set(register.fields().selector, 0);
        vmcs.set(register.fields().rights, AccessRights::default().with(AccessRights::UNUSABLE, true));
    }
    vmcs
}

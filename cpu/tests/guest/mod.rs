//! A guest without a VMM: RAM, page tables and a VMCS that passes the checks, in 64-bit mode at CPL 0.
#![allow(dead_code, reason = "each test uses its part")]

use cpu::{Cpu, Memory, Model, Region, Time};
use iced_x86::code_asm::CodeAssembler;
use std::ptr::NonNull;
use vmcs12::addr::{Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::arch::{efer, rflags};
use vmcs12::control::*;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Exit};
use vmcs12::field::table::*;
use vmcs12::field::{Vmcs, VmcsSet};

/// Guest RAM.
pub const RAM: u64 = 16 << 20;
/// Where code is loaded.
pub const CODE: u64 = 0x10_0000;
/// Top of the stack.
pub const STACK: u64 = 0x20_0000;
/// Where page tables stand: a PML4, a PDPT, and four page directories of 2-MiB pages, identity.
pub const PML4: u64 = 0x1000;
/// GDT and TSS and IDT of the guest.
pub const GDT: u64 = 0x8000;
/// IDT.
pub const IDT: u64 = 0x9000;
/// TSS.
pub const TSS: u64 = 0xa000;

/// A processor and its guest.
pub struct Guest {
    pub cpu: Cpu,
    pub memory: Memory,
    pub vmcs: VmcsSet,
    pub state: CpuState,
    pub time: Time,
}

/// Anonymous memory that lives as long as the test process.
pub fn map(len: u64) -> NonNull<u8> {
    // SAFETY: a fresh anonymous mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    NonNull::new(at.cast()).expect("mmap returns no null")
}

impl Guest {
    /// In 64-bit mode, identity-mapped, without EPT.
    pub fn new() -> Self {
        let region = Region { base: Pa(0), len: RAM, host: map(RAM) };
        // SAFETY: the mapping is never removed.
        let memory = unsafe { Memory::new(vec![region]) };
        write_page_tables(&memory);
        let capabilities = vmcs12::implemented::processor();
        let model = Model { capabilities, physical_width: 46, lacks: cpu::Lacks::default() };
        let vmcs =
            VmcsSet { current: Box::new(long_mode()), linked: None, writers: None, shadow_accesses: (0, 0) };
        let time = Time { now_ns: 0, tsc_mult_q32: 1 << 32 };
        Self { cpu: Cpu::new(memory.clone(), model), memory, vmcs, state: CpuState::default(), time }
    }

    /// Loads code at [`CODE`].
    pub fn load(&mut self, assemble: impl FnOnce(&mut CodeAssembler)) -> &mut Self {
        let mut a = CodeAssembler::new(64).expect("64 bits is a bitness");
        assemble(&mut a);
        let code = a.assemble(CODE).expect("the test's code assembles");
        self.memory.write(Pa(CODE), &code);
        self
    }

    /// Enters until an exit or `budget` instructions.
    pub fn run(&mut self, budget: u64) -> Exit {
        let exit = self.cpu.enter(&mut self.vmcs, &mut self.state, Budget(budget), &self.time);
        self.time.now_ns += exit.retired;
        exit
    }

    pub fn reg(&self, i: usize) -> u64 {
        self.state.gpr[i]
    }
    pub fn rip(&self) -> u64 {
        self.vmcs.current.get(GUEST_RIP)
    }
    pub fn rflags(&self) -> u64 {
        self.vmcs.current.get(GUEST_RFLAGS)
    }
}

fn write_page_tables(memory: &Memory) {
    const P_RW_US: u64 = 7;
    memory.write_u64(Pa(PML4), (PML4 + 0x1000) | P_RW_US);
    for i in 0..4 {
        memory.write_u64(Pa(PML4 + 0x1000 + 8 * i), (PML4 + 0x2000 + 0x1000 * i) | P_RW_US);
        for j in 0..512 {
            memory
                .write_u64(Pa(PML4 + 0x2000 + 0x1000 * i + 8 * j), ((i * 512 + j) << 21) | P_RW_US | 1 << 7);
        }
    }
}

fn rights(kind: u8, s: bool, dpl: u8) -> AccessRights {
    AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, s)
        .with(AccessRights::DPL, dpl)
        .with(AccessRights::P, true)
}

/// Must-be-one bits of every control word, for a VMCS that passes the checks.
pub fn set_required(vmcs: &mut Vmcs) {
    let capabilities = vmcs12::implemented::implemented();
    for word in Word::ALL {
        let field = word.field();
        let required = capabilities.allowed(word).must_be_one;
        vmcs.set_raw(field, vmcs.raw(field) | required);
    }
}

/// A VMCS whose guest is in 64-bit mode at [`CODE`], and whose host state passes the checks.
pub fn long_mode() -> Vmcs {
    let mut vmcs = Vmcs::default();
    for control in
        [HOST_ADDRESS_SPACE_SIZE, SAVE_IA32_EFER, LOAD_IA32_EFER_ON_ENTRY, IA_32E_MODE_GUEST, HLT_EXITING]
    {
        vmcs.set_control(control, true);
    }
    set_required(&mut vmcs);
    vmcs.set(GUEST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::ET | cr0::MP | cr0::WP);
    vmcs.set(GUEST_CR3, PML4);
    vmcs.set(GUEST_CR4, cr4::PAE | cr4::VMXE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE);
    vmcs.set(GUEST_IA32_EFER, efer::LME | efer::LMA | efer::SCE | efer::NXE);
    vmcs.set(GUEST_DR7, 0x400);
    vmcs.set(GUEST_RIP, CODE);
    vmcs.set(GUEST_RSP, STACK);
    vmcs.set(GUEST_RFLAGS, rflags::FIXED);
    vmcs.set(VMCS_LINK_POINTER, Pa(u64::MAX));
    for register in [
        SegmentRegister::Es,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ] {
        let fields = register.fields();
        vmcs.set(fields.selector, 0x10);
        vmcs.set(fields.limit, u32::MAX);
        vmcs.set(fields.rights, rights(3, true, 0).with(AccessRights::DB, true).with(AccessRights::G, true));
    }
    vmcs.set(GUEST_CS_SELECTOR, 8);
    vmcs.set(GUEST_CS_LIMIT, u32::MAX);
    vmcs.set(
        GUEST_CS_ACCESS_RIGHTS,
        rights(11, true, 0).with(AccessRights::L, true).with(AccessRights::G, true),
    );
    vmcs.set(GUEST_LDTR_ACCESS_RIGHTS, AccessRights::default().with(AccessRights::UNUSABLE, true));
    vmcs.set(GUEST_TR_SELECTOR, 0x30);
    vmcs.set(GUEST_TR_BASE, TSS);
    vmcs.set(GUEST_TR_LIMIT, 0x67);
    vmcs.set(GUEST_TR_ACCESS_RIGHTS, rights(11, false, 0));
    vmcs.set(GUEST_GDTR_BASE, GDT);
    vmcs.set(GUEST_GDTR_LIMIT, 0xff);
    vmcs.set(GUEST_IDTR_BASE, IDT);
    vmcs.set(GUEST_IDTR_LIMIT, 0xfff);
    set_host(&mut vmcs);
    vmcs
}

/// A host state that passes the checks.
pub fn set_host(vmcs: &mut Vmcs) {
    vmcs.set(HOST_CR0, cr0::PE | cr0::NE | cr0::PG);
    vmcs.set(HOST_CR4, cr4::PAE | cr4::VMXE);
    vmcs.set(HOST_CS_SELECTOR, 8);
    vmcs.set(HOST_TR_SELECTOR, 0x30);
}

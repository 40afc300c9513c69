//! A small world for the engine: RAM, an arena, an L1 in 64-bit mode whose linear addresses are physical.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use shadow::engine::Msrs;
use shadow::instruction::feature_control;
use shadow::{Decision, Engine, Ept01, Host, L2Exit, Outcome, Pending};
use std::cell::RefCell;
use vmcs12::addr::{ARENA_BASE, Gpa, Gva, Linear, LinearFault, Pa, Physical};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::efer;
use vmcs12::arch::eptp::Eptp;
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, SegmentRegister};
use vmcs12::caps::{Capabilities, VmxBasic};
use vmcs12::check::NO_LINK;
use vmcs12::control::*;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::Reason;
use vmcs12::field::{AnyField, Field, Value, Vmcs, VmcsSet, table::*};
use vmcs12::implemented;

pub const RAM: u64 = 16 << 20;
pub const ARENA: u64 = 1 << 20;
/// Where L1 keeps things.
pub const VMXON_REGION: u64 = 0x1000;
pub const VMCS_REGION: u64 = 0x2000;
pub const OTHER_REGION: u64 = 0x3000;
pub const OPERAND: u64 = 0x4000;
pub const MSR_LIST: u64 = 0x5000;
pub const MSR_BITMAP: u64 = 0x6000;
pub const IO_BITMAP_A: u64 = 0x7000;
pub const IO_BITMAP_B: u64 = 0x8000;
pub const EPT12: u64 = 0x10_0000;
/// An address without memory.
pub const HOLE: u64 = 0x8000_0000;
/// Where L1 is, how long its instruction, and where its exits go.
pub const L1_RIP: u64 = 0xffff_8000_0000_1000;
pub const LENGTH: u64 = 3;
pub const HOST_RIP_12: u64 = 0xffff_8000_0000_2000;
pub const L2_RIP: u64 = 0x7000_1000;
pub const WIDTH: u32 = 40;
/// L0's own pages at the end of the arena.
pub const L0_MSR_BITMAP: u64 = ARENA_BASE.0 + ARENA - 0x1000;
pub const EPTP01: u64 = ARENA_BASE.0 + ARENA - 0x2000;

pub struct Memory {
    ram: RefCell<Vec<u8>>,
    arena: RefCell<Vec<u8>>,
}

impl Memory {
    /// The bytes at an address, if they are memory.
    fn with<R>(&self, at: Pa, len: usize, with: impl FnOnce(Option<&mut [u8]>) -> R) -> R {
        let (held, offset) = match at.0.checked_sub(ARENA_BASE.0) {
            Some(offset) => (&self.arena, offset),
            None => (&self.ram, at.0),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        with(held.borrow_mut().get_mut(start..start.saturating_add(len)))
    }
}

impl Physical for Memory {
    fn read(&self, from: Pa, into: &mut [u8]) {
        self.with(from, into.len(), |held| match held {
            Some(held) => into.copy_from_slice(held),
            None => into.fill(0xff),
        });
    }
    fn write(&self, to: Pa, bytes: &[u8]) {
        self.with(to, bytes.len(), |held| {
            if let Some(held) = held {
                held.copy_from_slice(bytes);
            }
        });
    }
    fn read_u64(&self, from: Pa) -> u64 {
        let mut bytes = [0; 8];
        self.read(from, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn write_u64(&self, to: Pa, value: u64) {
        self.write(to, &value.to_le_bytes());
    }
    fn compare_exchange_u64(&self, at: Pa, old: u64, new: u64) -> u64 {
        let held = self.read_u64(at);
        if held == old {
            self.write_u64(at, new);
        }
        held
    }
    fn is_backed(&self, page: Pa) -> bool {
        self.with(page, 1, |held| held.is_some())
    }
}

/// Linear addresses are physical; one page can be made to fault.
pub struct Identity<'a> {
    memory: &'a Memory,
    faulting: Option<u64>,
}

impl Linear for Identity<'_> {
    fn read(&mut self, address: Gva, into: &mut [u8]) -> Result<(), LinearFault> {
        match self.faulting {
            Some(page) if page == address.0 & !0xfff => {
                Err(LinearFault::Exception(Exception::pf(address.0, 0)))
            }
            _ if address.0 >= HOLE => Err(LinearFault::Ept(Gpa(address.0))),
            _ => {
                self.memory.read(Pa(address.0), into);
                Ok(())
            }
        }
    }
    fn write(&mut self, address: Gva, bytes: &[u8]) -> Result<(), LinearFault> {
        let mut held = vec![0; bytes.len()];
        self.read(address, &mut held)?;
        self.memory.write(Pa(address.0), bytes);
        Ok(())
    }
}

/// One MSR of L0's, 200H; all others fault.
#[derive(Default)]
pub struct OneMsr(pub u64);

impl Msrs for OneMsr {
    fn read(&mut self, index: u32) -> Option<u64> {
        (index == 0x200).then_some(self.0)
    }
    fn write(&mut self, index: u32, value: u64) -> bool {
        if index == 0x200 {
            self.0 = value;
        }
        index == 0x200
    }
}

pub struct World {
    pub memory: Memory,
    pub vmcs01: VmcsSet,
    pub state: CpuState,
    pub msrs: OneMsr,
    pub engine: Engine,
    pub faulting: Option<u64>,
    pub tsc: u64,
}

/// 16 MiB of RAM.
pub fn ept01() -> Ept01 {
    Ept01::new(&[0..RAM, 0..0])
}

pub fn offered() -> Capabilities {
    Capabilities { physical_width: WIDTH, ..implemented::implemented() }
}

impl Default for World {
    fn default() -> Self {
        Self::new(offered())
    }
}

impl World {
    pub fn new(offered: Capabilities) -> Self {
        let memory =
            Memory { ram: RefCell::new(vec![0; RAM as usize]), arena: RefCell::new(vec![0; ARENA as usize]) };
        let tables = ARENA_BASE..Pa(EPTP01);
        let mut engine = Engine::new(offered, implemented::processor(), ept01(), tables, &memory);
        engine.feature_control = feature_control::LOCK | feature_control::VMX_OUTSIDE_SMX;
        let vmcs01 =
            VmcsSet { current: Box::new(vmcs01()), linked: None, writers: None, shadow_accesses: (0, 0) };
        let mut world = Self {
            memory,
            vmcs01,
            state: CpuState::default(),
            msrs: OneMsr::default(),
            engine,
            faulting: None,
            tsc: 1_000_000,
        };
        for region in [VMXON_REGION, VMCS_REGION, OTHER_REGION] {
            world.memory.write_u32(Pa(region), world.revision());
        }
        world.at_memory_operand(OPERAND);
        world
    }

    /// L1 in VMX operation.
    pub fn in_root() -> Self {
        let mut world = Self::default();
        assert_eq!(world.with_pointer(Reason::Vmxon, VMXON_REGION), Outcome::Completed);
        assert!(world.succeeded());
        world
    }

    /// L1 in VMX operation with a current vmcs12 that can be entered.
    pub fn with_current() -> Self {
        let mut world = Self::in_root();
        assert_eq!(world.with_pointer(Reason::Vmptrld, VMCS_REGION), Outcome::Completed);
        assert!(world.succeeded());
        fill_valid(world.vmcs12());
        world
    }

    /// L2 running, after changes to vmcs12.
    pub fn in_l2_with(change: impl FnOnce(&mut World)) -> Self {
        let mut world = Self::with_current();
        change(&mut world);
        assert_eq!(world.instruction(Reason::Vmlaunch), Outcome::Entered, "{:?}", world.engine.broken_rule);
        world
    }

    pub fn in_l2() -> Self {
        Self::in_l2_with(|_| {})
    }

    pub fn revision(&self) -> u32 {
        self.engine.offered().basic.get(VmxBasic::REVISION)
    }

    pub fn vmcs12(&mut self) -> &mut Vmcs {
        self.vmcs01.linked.as_deref_mut().expect("there is a current vmcs12")
    }

    pub fn vmcs02(&mut self) -> &mut Vmcs {
        &mut self.engine.vmcs02.current
    }

    pub fn get01<T: Value>(&self, field: Field<T>) -> T {
        self.vmcs01.current.get(field)
    }

    fn call<R>(&mut self, with: impl FnOnce(&mut Engine, &mut Host<Memory, Identity<'_>, OneMsr>) -> R) -> R {
        let mut linear = Identity { memory: &self.memory, faulting: self.faulting };
        let mut host = Host {
            memory: &self.memory,
            linear: &mut linear,
            msrs: &mut self.msrs,
            vmcs01: &mut self.vmcs01,
            state: &mut self.state,
            tsc: self.tsc,
        };
        with(&mut self.engine, &mut host)
    }

    /// L1 executes a VMX instruction.
    pub fn instruction(&mut self, reason: Reason) -> Outcome {
        let vmcs01 = &mut self.vmcs01.current;
        vmcs01.set(GUEST_RIP, L1_RIP);
        vmcs01.set(VM_EXIT_INSTRUCTION_LENGTH, LENGTH as u32);
        self.call(|engine, host| engine.on_l1_instruction(host, reason))
    }

    /// L1 executes an instruction whose memory operand is a pointer.
    pub fn with_pointer(&mut self, reason: Reason, pointer: u64) -> Outcome {
        self.memory.write_u64(Pa(OPERAND), pointer);
        self.at_memory_operand(OPERAND);
        self.instruction(reason)
    }

    /// L1's memory operand is at [disp], through DS, 64-bit addresses, and the register operand is RAX.
    pub fn at_memory_operand(&mut self, address: u64) {
        let no_base_no_index = 1 << 27 | 1 << 22;
        let (ds, size_64) = (3 << 15, 2 << 7);
        self.vmcs01.current.set(VM_EXIT_INSTRUCTION_INFORMATION, no_base_no_index | ds | size_64);
        self.vmcs01.current.set(EXIT_QUALIFICATION, address);
    }

    /// VMREAD or VMWRITE of a field between RCX and, for the encoding, RAX.
    pub fn access(&mut self, reason: Reason, encoding: u64, value: u64) -> Outcome {
        let (is_register, rcx) = (1 << 10, 1 << 3);
        self.vmcs01.current.set(VM_EXIT_INSTRUCTION_INFORMATION, is_register | rcx);
        self.state.gpr[0] = encoding;
        self.state.gpr[1] = value;
        self.instruction(reason)
    }

    /// INVEPT or INVVPID.
    pub fn invalidate(&mut self, reason: Reason, kind: u64, low: u64, high: u64) -> Outcome {
        self.memory.write_u64(Pa(OPERAND), low);
        self.memory.write_u64(Pa(OPERAND + 8), high);
        self.at_memory_operand(OPERAND);
        self.state.gpr[0] = kind;
        self.instruction(reason)
    }

    /// L2 exits; `record` writes the exit information.
    pub fn exit(&mut self, reason: Reason, record: impl FnOnce(&mut Vmcs)) -> L2Exit {
        let vmcs02 = &mut self.engine.vmcs02.current;
        vmcs02.set(EXIT_REASON, reason as u32);
        vmcs02.set(EXIT_QUALIFICATION, 0);
        vmcs02.set(VM_EXIT_INSTRUCTION_LENGTH, 2);
        vmcs02.set(ORIGINAL_EVENT_IDENTIFICATION, Value::from_raw(0));
        vmcs02.set(EXITING_EVENT_IDENTIFICATION, Value::from_raw(0));
        let injected = vmcs02.get(INJECTED_EVENT_IDENTIFICATION).raw() & 0x7fff_ffff;
        vmcs02.set(INJECTED_EVENT_IDENTIFICATION, Value::from_raw(injected));
        record(vmcs02);
        self.call(|engine, host| engine.on_l2_exit(host, reason))
    }

    pub fn before_entry(&mut self, pending: Pending) -> Decision {
        self.call(|engine, host| engine.before_l2_entry(host, pending))
    }

    pub fn raise(&mut self, exception: Exception) -> L2Exit {
        self.call(|engine, host| engine.raise(host, exception))
    }

    fn flags(&self) -> u64 {
        self.get01(GUEST_RFLAGS) & rflags::STATUS
    }

    fn moved_on(&self) -> bool {
        self.get01(GUEST_RIP) == L1_RIP + LENGTH
    }

    /// VMsucceed, and RIP behind the instruction.
    pub fn succeeded(&self) -> bool {
        self.moved_on() && self.flags() == 0
    }

    /// VMfailInvalid.
    pub fn failed_invalid(&self) -> bool {
        self.moved_on() && self.flags() == rflags::CF
    }

    /// VMfailValid with this error.
    pub fn failed(&mut self, error: u32) -> bool {
        let held = self.vmcs12().get(VM_INSTRUCTION_ERROR);
        self.moved_on() && self.flags() == rflags::ZF && held == error
    }

    /// Identity-maps L2's first 16 MiB in ept12 by 4-KByte pages from `EPT12` on; returns the EPTP.
    pub fn build_ept12(&mut self) -> Eptp {
        let table = |n: u64| EPT12 + n * 0x1000;
        for (n, next) in [(0, 1), (1, 2)] {
            self.memory.write_u64(Pa(table(n)), table(next) | 7);
        }
        for pd in 0..8 {
            self.memory.write_u64(Pa(table(2) + pd * 8), table(3 + pd) | 7);
            for pt in 0..512 {
                let page = pd << 21 | pt << 12;
                self.memory.write_u64(Pa(table(3 + pd) + pt * 8), page | 7 | 6 << 3);
            }
        }
        Eptp(EPT12 | 3 << 3 | 6)
    }

    /// The place of ept12's leaf entry for an address, as [`World::build_ept12`] made it.
    pub fn leaf12(address: u64) -> Pa {
        Pa(EPT12 + 0x3000 + (address >> 12) * 8)
    }

    /// Turns EPT on in vmcs12, with empty tables.
    pub fn enable_ept12_pointer(&mut self) {
        let vmcs12 = self.vmcs12();
        vmcs12.set_control(ENABLE_EPT, true);
        vmcs12.set(EPTP, Eptp(EPT12 | 3 << 3 | 6));
    }

    /// Turns EPT on in vmcs12.
    pub fn enable_ept12(&mut self) -> Eptp {
        let eptp = self.build_ept12();
        let vmcs12 = self.vmcs12();
        vmcs12.set_control(ENABLE_EPT, true);
        vmcs12.set(EPTP, eptp);
        eptp
    }
}

pub fn segment(kind: u8, is_system: bool) -> AccessRights {
    AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, !is_system)
        .with(AccessRights::P, true)
}

fn set_long_mode_guest(vmcs: &mut Vmcs, rip: u64) {
    vmcs.set(GUEST_CR0, cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG);
    vmcs.set(GUEST_CR4, cr4::PAE | cr4::VMXE);
    vmcs.set(GUEST_IA32_EFER, efer::LMA | efer::LME | efer::SCE | efer::NXE);
    vmcs.set(GUEST_IA32_PAT, 0x0007_0406_0007_0406);
    vmcs.set(GUEST_DR7, 0x400);
    vmcs.set(GUEST_RFLAGS, rflags::FIXED);
    vmcs.set(GUEST_RIP, rip);
    vmcs.set(VMCS_LINK_POINTER, Pa(NO_LINK));
    for register in SegmentRegister::ALL {
        let fields = register.fields();
        let rights = match register {
            SegmentRegister::Cs => segment(11, false).with(AccessRights::L, true),
            SegmentRegister::Tr => segment(11, true),
            SegmentRegister::Ldtr => AccessRights::default().with(AccessRights::UNUSABLE, true),
            _ => segment(3, false).with(AccessRights::DB, true),
        };
        vmcs.set(fields.rights, rights.with(AccessRights::G, false));
        vmcs.set(fields.limit, 0xffff);
        vmcs.set(fields.selector, if register == SegmentRegister::Ldtr { 0 } else { 8 });
    }
    vmcs.set_control(IA_32E_MODE_GUEST, true);
}

fn set_host(vmcs: &mut Vmcs) {
    vmcs.set(HOST_CR0, cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG);
    vmcs.set(HOST_CR4, cr4::PAE | cr4::VMXE);
    vmcs.set(HOST_IA32_EFER, efer::LMA | efer::LME | efer::SCE | efer::NXE);
    vmcs.set(HOST_IA32_PAT, 0x0007_0406_0007_0406);
    vmcs.set(HOST_CS_SELECTOR, 0x10);
    vmcs.set(HOST_TR_SELECTOR, 0x40);
    vmcs.set(HOST_RIP, HOST_RIP_12);
}

fn set_required(vmcs: &mut Vmcs, caps: &Capabilities) {
    for word in Word::ALL {
        vmcs.set_raw(word.field(), caps.allowed(word).must_be_one);
    }
}

/// vmcs01 as L0 has it.
pub fn vmcs01() -> Vmcs {
    let mut vmcs = Vmcs::default();
    set_required(&mut vmcs, &implemented::processor());
    for control in [
        EXTERNAL_INTERRUPT_EXITING,
        NMI_EXITING,
        HLT_EXITING,
        USE_TSC_OFFSETTING,
        UNCONDITIONAL_IO_EXITING,
        USE_MSR_BITMAPS,
        ACTIVATE_SECONDARY_CONTROLS,
        ENABLE_EPT,
        ENABLE_VPID,
        ENABLE_RDTSCP,
        ENABLE_INVPCID,
        UNRESTRICTED_GUEST,
        SAVE_DEBUG_CONTROLS,
        HOST_ADDRESS_SPACE_SIZE,
        SAVE_IA32_PAT,
        LOAD_IA32_PAT_ON_EXIT,
        SAVE_IA32_EFER,
        LOAD_IA32_EFER_ON_EXIT,
        LOAD_DEBUG_CONTROLS,
        LOAD_IA32_PAT_ON_ENTRY,
        LOAD_IA32_EFER_ON_ENTRY,
    ] {
        vmcs.set_control(control, true);
    }
    set_long_mode_guest(&mut vmcs, L1_RIP);
    set_host(&mut vmcs);
    vmcs.set(VPID, 1);
    vmcs.set(EPTP, Eptp(EPTP01 | 3 << 3 | 6));
    vmcs.set(ADDRESS_OF_MSR_BITMAPS, Pa(L0_MSR_BITMAP));
    vmcs.set(CR4_GUEST_HOST_MASK, cr4::VMXE);
    vmcs.set(CR4_READ_SHADOW, cr4::VMXE);
    vmcs.set(CR0_GUEST_HOST_MASK, cr0::NE);
    vmcs.set(CR0_READ_SHADOW, cr0::NE);
    vmcs.set(TSC_OFFSET, 100);
    vmcs
}

/// A vmcs12 that passes every check: a 64-bit L2 without EPT.
pub fn fill_valid(vmcs: &mut Vmcs) {
    for slot in 0..COUNT {
        vmcs.set_raw(AnyField::at(slot), 0);
    }
    set_required(vmcs, &offered());
    for control in [
        EXTERNAL_INTERRUPT_EXITING,
        NMI_EXITING,
        HLT_EXITING,
        ACTIVATE_SECONDARY_CONTROLS,
        HOST_ADDRESS_SPACE_SIZE,
        LOAD_DEBUG_CONTROLS,
        SAVE_DEBUG_CONTROLS,
        LOAD_IA32_EFER_ON_ENTRY,
        SAVE_IA32_EFER,
        LOAD_IA32_EFER_ON_EXIT,
        ENABLE_VPID,
    ] {
        vmcs.set_control(control, true);
    }
    vmcs.set(VPID, 7);
    set_long_mode_guest(vmcs, L2_RIP);
    set_host(vmcs);
}

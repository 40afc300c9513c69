//! Small guests, run by the loop itself: each states one thing that L0 does for L1.

use super::Vcpu;
use crate::boot::{DescriptorTable, EntryState};
use crate::clock::{Clock, Idle, Source};
use crate::config::{End, Retired, Stop, StopReason};
use crate::device::frequency::Frequency;
use crate::device::{Devices, Machine, Platform};
use crate::machine::board::{Board, Connections};
use crate::machine::soft;
use crate::memory::Memory;
use crate::vcpu::model::Model;
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};
use vmcs12::arch::cr::cr0;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::exit::Reason;
use vmcs12::implemented;
use vmcs12::offer::{self, HostFeatures};
use vmcs12::profile::Profile;

const ORIGIN: u64 = 0x1000;
const STACK: u64 = 0x8000;
/// Where the guests put what they found out.
const RESULT: u32 = 0x9000;
const IDT: u64 = 0xa000;
const GDT: u64 = 0xb000;
const CODE_SELECTOR: u16 = 0x08;
const DEBUG_EXIT: i32 = 0xf4;

struct Guest {
    vcpu: Vcpu,
    board: Board,
    memory: Memory,
    stop: Stop,
}

fn flat(selector: u16, kind: u8) -> Segment {
    let rights = AccessRights::default()
        .with(AccessRights::TYPE, kind)
        .with(AccessRights::S, true)
        .with(AccessRights::P, true)
        .with(AccessRights::G, true)
        .with(AccessRights::DB, true);
    Segment { base: 0, limit: u32::MAX, rights, selector }
}

/// 32-bit protected mode, flat, interrupts off.
fn entry() -> EntryState {
    let mut segments = [flat(0x10, 3); 8];
    segments[SegmentRegister::Cs as usize] = flat(CODE_SELECTOR, 0xb);
    let unusable = AccessRights::default().with(AccessRights::UNUSABLE, true);
    segments[SegmentRegister::Ldtr as usize] = Segment { rights: unusable, ..Segment::default() };
    let busy = AccessRights::default().with(AccessRights::TYPE, 0xb).with(AccessRights::P, true);
    segments[SegmentRegister::Tr as usize] = Segment { base: 0, limit: 0x67, rights: busy, selector: 0x20 };
    let mut gpr = [0; 16];
    gpr[vmcs12::cpu_state::gpr::RSP] = STACK;
    EntryState {
        rip: ORIGIN,
        gpr,
        rflags: 2,
        cr0: cr0::PE | cr0::ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        segments,
        gdtr: DescriptorTable { base: GDT, limit: 0x17 },
        idtr: DescriptorTable { base: IDT, limit: 0x7ff },
    }
}

fn model() -> Model {
    let profile = Profile::named(offer::DEFAULT_PROFILE).expect("the default profile is embedded");
    let offer = offer::offer(&profile, &implemented::implemented(), &HostFeatures::default(), 1, &[]);
    Model::new(offer.expect("a profile as it is can be offered"))
}

impl Guest {
    fn new(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut code = CodeAssembler::new(32).unwrap();
        program(&mut code).unwrap();
        let memory = Memory::new(1 << 20).unwrap();
        memory.ram().write_slice(&code.assemble(ORIGIN).unwrap(), GuestAddress(ORIGIN)).unwrap();
        memory.ram().write_obj(0x00cf_9b00_0000_ffffu64, GuestAddress(GDT + 8)).unwrap();
        memory.ram().write_obj(0x00cf_9300_0000_ffffu64, GuestAddress(GDT + 16)).unwrap();
        let platform = Platform {
            memory_below_4g: 1 << 20,
            memory_above_4g: 0,
            date: 0,
            console: Box::new(std::io::sink()),
        };
        let model = model();
        let devices = Devices::new(Machine {
            processors: 1,
            apic_timer: Frequency::new(model.offer.crystal_hz),
            x2apic: true,
            physical_width: model.offer.physical_width(),
            platform,
        });
        let clock = Clock::new(Source::Virtual, Idle::Jump, model.offer.tsc_khz);
        let stop = Stop::default();
        let (_, input) = crossbeam::channel::bounded(1);
        let board = Board::new(
            clock,
            devices,
            Connections { input, retired: Retired::default(), stop: stop.clone() },
        );
        let vcpu = soft::vcpu(&memory, model, &entry(), 0, &board.clock).unwrap();
        Self { vcpu, board, memory, stop }
    }

    /// An interrupt gate to code at `handler`.
    fn gate(
        self,
        vector: u8,
        handler: u32,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let mut code = CodeAssembler::new(32).unwrap();
        program(&mut code).unwrap();
        let handler_at = GuestAddress(u64::from(handler));
        self.memory.ram().write_slice(&code.assemble(u64::from(handler)).unwrap(), handler_at).unwrap();
        let low = handler & 0xffff | u32::from(CODE_SELECTOR) << 16;
        let high = handler & 0xffff_0000 | 0x8e00;
        let gate = u64::from(high) << 32 | u64::from(low);
        self.memory.ram().write_obj(gate, GuestAddress(IDT + 8 * u64::from(vector))).unwrap();
        self
    }

    fn run(&mut self) -> End {
        let end = self.vcpu.run(&mut self.board).unwrap();
        for line in self.vcpu.last_exits() {
            println!("{line}");
        }
        end
    }

    fn result(&self, at: u64) -> u32 {
        self.memory.ram().read_obj(GuestAddress(u64::from(RESULT) + at)).unwrap()
    }
}

/// Ends the guest with a value.
fn leave(code: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    code.mov(eax, value)?;
    code.out(DEBUG_EXIT, eax)
}

#[test]
fn a_guest_ends_by_the_debug_exit_port() {
    let mut guest = Guest::new(|code| leave(code, 7));
    assert_eq!(guest.run(), End::DebugExit(7));
    assert_eq!(guest.board.retired(), 1);
}

#[test]
fn instructions_that_l0_completes_count_as_one_each() {
    let mut guest = Guest::new(|code| {
        code.xor(eax, eax)?;
        code.cpuid()?;
        code.nop()?;
        leave(code, 0)
    });
    assert_eq!(guest.run(), End::DebugExit(0));
    assert_eq!(guest.board.retired(), 4);
    assert_eq!(guest.vcpu.counters.from_l1.get(Reason::Cpuid), 1);
}

#[test]
fn cpuid_shows_vmx_and_the_vendor() {
    let mut guest = Guest::new(|code| {
        code.xor(eax, eax)?;
        code.cpuid()?;
        code.mov(dword_ptr(RESULT), ebx)?;
        code.mov(eax, 1)?;
        code.cpuid()?;
        code.mov(dword_ptr(RESULT + 4), ecx)?;
        leave(code, 0)
    });
    guest.run();
    assert_eq!(guest.result(0).to_le_bytes(), *b"Genu");
    assert_ne!(guest.result(4) & 1 << 5, 0);
}

#[test]
fn an_msr_that_does_not_exist_raises_gp_with_its_instruction_as_the_return_address() {
    let program = |code: &mut CodeAssembler| {
        code.mov(ecx, 0xc001_0015u32)?;
        code.rdmsr()
    };
    let mut guest = Guest::new(program).gate(13, 0x2000, |code| {
        code.pop(eax)?;
        code.pop(ebx)?;
        code.mov(dword_ptr(RESULT), ebx)?;
        leave(code, 13)
    });
    assert_eq!(guest.run(), End::DebugExit(13));
    assert_eq!(u64::from(guest.result(0)), ORIGIN + 5);
}

#[test]
fn a_wrmsr_to_the_tsc_shows_in_rdtsc() {
    let mut guest = Guest::new(|code| {
        code.mov(ecx, 0x10)?;
        code.mov(eax, 0x1000)?;
        code.xor(edx, edx)?;
        code.wrmsr()?;
        code.rdtsc()?;
        code.mov(dword_ptr(RESULT), eax)?;
        leave(code, 0)
    });
    guest.run();
    assert!((0x1000..0x1100).contains(&guest.result(0)), "{:#x}", guest.result(0));
}

#[test]
fn ne_and_vmxe_are_l1s_to_choose() {
    let mut guest = Guest::new(|code| {
        code.mov(eax, cr0)?;
        code.mov(dword_ptr(RESULT), eax)?;
        code.or(eax, 0x20)?;
        code.mov(cr0, eax)?;
        code.mov(eax, cr0)?;
        code.mov(dword_ptr(RESULT + 4), eax)?;
        code.mov(eax, 0x2000)?;
        code.mov(cr4, eax)?;
        code.mov(eax, cr4)?;
        code.mov(dword_ptr(RESULT + 8), eax)?;
        leave(code, 0)
    });
    assert_eq!(guest.run(), End::DebugExit(0));
    assert_eq!([guest.result(0), guest.result(4), guest.result(8)], [0x11, 0x31, 0x2000]);
    assert_eq!(guest.board.retired(), 11);
}

#[test]
fn a_triple_fault_ends_the_run() {
    let mut guest = Guest::new(CodeAssembler::ud2);
    assert_eq!(guest.run(), End::TripleFault);
    assert!(guest.vcpu.last_exits().last().unwrap().contains("TripleFault"));
}

#[test]
fn a_halt_with_interrupts_off_ends_the_run() {
    assert_eq!(Guest::new(CodeAssembler::hlt).run(), End::Halted);
}

/// A guest that halts until its timer interrupts it.
fn waits_for_its_timer() -> Guest {
    let program = |code: &mut CodeAssembler| {
        code.mov(edi, 0xfee0_0000u32)?;
        code.mov(dword_ptr(edi + 0xf0), 0x1ff)?; // spurious-interrupt vector, enabled
        code.mov(dword_ptr(edi + 0x3e0), 0xb)?; // divide by 1
        code.mov(dword_ptr(edi + 0x320), 0x40)?; // one shot, vector 40H
        code.mov(dword_ptr(edi + 0x380), 1_000_000)?;
        code.sti()?;
        code.hlt()?;
        leave(code, 1)
    };
    Guest::new(program).gate(0x40, 0x2000, |code| leave(code, 0x40))
}

#[test]
fn the_same_guest_makes_the_same_run() {
    let run = || {
        let mut guest = waits_for_its_timer();
        let end = guest.run();
        let counters = guest.vcpu.counters(&guest.board);
        (end, counters, guest.board.clock.now_ns(), guest.vcpu.last_exits())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_local_apics_timer_ends_a_halt_and_costs_no_instructions() {
    let mut guest = waits_for_its_timer();
    assert_eq!(guest.run(), End::DebugExit(0x40));
    assert_eq!(guest.board.retired(), 8);
    assert!(guest.board.clock.now_ns() > 10_000_000);
    assert_eq!(guest.vcpu.counters.from_l1.get(Reason::EptViolation), 4);
}

#[test]
fn an_interrupt_waits_until_interrupts_are_on() {
    let program = |code: &mut CodeAssembler| {
        code.mov(edi, 0xfee0_0000u32)?;
        code.mov(dword_ptr(edi + 0xf0), 0x1ff)?;
        code.mov(dword_ptr(edi + 0x300), 0x4_0041)?; // to itself
        code.mov(ecx, 1000)?;
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.dec(ecx)?;
        code.jne(again)?;
        code.sti()?;
        code.nop()?;
        leave(code, 1)
    };
    let mut guest = Guest::new(program).gate(0x41, 0x2000, |code| {
        code.mov(dword_ptr(RESULT), ecx)?;
        leave(code, 0x41)
    });
    assert_eq!(guest.run(), End::DebugExit(0x41));
    assert_eq!(guest.result(0), 0);
    assert_eq!(guest.vcpu.counters.from_l1.get(Reason::InterruptWindow), 1);
}

#[test]
fn a_string_of_output_is_one_instruction_an_iteration() {
    let mut guest = Guest::new(|code| {
        code.mov(esi, RESULT)?;
        code.mov(ecx, 3000)?;
        code.mov(edx, 0x3f8)?;
        code.rep().outsb()?;
        code.mov(dword_ptr(RESULT), esi)?;
        code.mov(dword_ptr(RESULT + 4), ecx)?;
        leave(code, 0)
    });
    assert_eq!(guest.run(), End::DebugExit(0));
    assert_eq!((guest.result(0), guest.result(4)), (RESULT + 3000, 0));
    assert_eq!(guest.board.retired(), 3 + 3000 + 3);
}

#[test]
fn a_string_of_input_reaches_memory() {
    let mut guest = Guest::new(|code| {
        code.mov(edi, RESULT)?;
        code.mov(ecx, 4)?;
        code.mov(edx, 0x9999)?;
        code.rep().insb()?;
        leave(code, 0)
    });
    assert_eq!(guest.run(), End::DebugExit(0));
    assert_eq!((guest.result(0), guest.result(4)), (u32::MAX, 0));
}

#[test]
fn vmx_instructions_outside_of_vmx_operation_raise_ud() {
    let mut guest = Guest::new(CodeAssembler::vmlaunch).gate(6, 0x2000, |code| leave(code, 6));
    assert_eq!(guest.run(), End::DebugExit(6));
}

#[test]
fn a_guest_that_loops_for_ever_ends_on_request() {
    let mut guest = Guest::new(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.jmp(again)
    });
    guest.stop.request(StopReason::Timeout);
    assert_eq!(guest.run(), End::Stopped(StopReason::Timeout));
}

#[test]
fn a_guest_that_exits_for_ever_ends_on_request() {
    let mut guest = Guest::new(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.cpuid()?;
        code.jmp(again)
    });
    guest.stop.request(StopReason::Timeout);
    assert_eq!(guest.run(), End::Stopped(StopReason::Timeout));
}

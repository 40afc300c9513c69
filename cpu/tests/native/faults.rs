//! What comes before execution: control bits, pending exceptions, alignment and pages. In each case the state is
//! as before.

use super::oracle::{MEMORY, Machine};
use super::whole::{ABSENT, READ_ONLY, Whole};
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use vmcs12::arch::cr::{cr0 as bit0, cr4 as bit4};
use vmcs12::arch::event::vector;
use vmcs12::cpu_state::{VectorState, gpr};
use vmcs12::field::table::{GUEST_CR0, GUEST_CR4};

const CR0: u64 = bit0::PE | bit0::NE | bit0::PG | bit0::ET | bit0::MP | bit0::WP;
const CR4: u64 = bit4::PAE | bit4::VMXE | bit4::PGE | bit4::OSFXSR | bit4::OSXMMEXCPT | bit4::OSXSAVE;

fn machine() -> Machine {
    let mut vector = VectorState { fcw: 0x37f, ..VectorState::default() };
    for (i, register) in vector.ymm.iter_mut().enumerate() {
        register.fill(i as u8 + 1);
    }
    Machine { vector, general: [0; 16], rflags: 2, memory: [0; MEMORY] }
}

fn assemble(emit: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("a bitness");
    emit(&mut a).expect("the form exists");
    a.assemble(0).expect("it assembles")
}

/// Executes one instruction with these control registers; the exception, and what the machine became.
fn execute(control_0: u64, control_4: u64, code: &[u8], mut machine: Machine) -> (Option<u8>, Machine) {
    let mut whole = Whole::new();
    whole.guest.vmcs.current.set(GUEST_CR0, control_0);
    whole.guest.vmcs.current.set(GUEST_CR4, control_4);
    whole.prepare(code);
    let exception = whole.execute(&mut machine);
    (exception, machine)
}

fn raises(control_0: u64, control_4: u64, code: &[u8]) -> Option<u8> {
    let before = machine();
    let (exception, after) = execute(control_0, control_4, code, before.clone());
    assert!(exception.is_none() || before == after, "{code:02x?} changed something");
    exception
}

#[test]
fn control_registers_gate_each_class() {
    let x87 = assemble(|a| a.fld1());
    let wait = assemble(|a| a.wait());
    let mmx = assemble(|a| a.paddb(mm0, mm1));
    let sse = assemble(|a| a.paddb(xmm0, xmm1));
    let mixed = assemble(|a| a.cvtpi2pd(xmm0, mm1));
    let (ts, em, mp) = (bit0::TS, bit0::EM, bit0::MP);
    for (code, without_mp_ts, with_em) in [
        (&x87, Some(vector::NM), Some(vector::NM)),
        (&wait, None, None),
        (&mmx, Some(vector::NM), Some(vector::UD)),
        (&sse, Some(vector::NM), Some(vector::UD)),
        (&mixed, Some(vector::NM), Some(vector::UD)),
    ] {
        assert_eq!(raises(CR0, CR4, code), None, "{code:02x?}");
        assert_eq!(raises(CR0 | ts, CR4, code), Some(vector::NM), "{code:02x?}");
        assert_eq!(raises(CR0 & !mp | ts, CR4, code), without_mp_ts, "{code:02x?}");
        assert_eq!(raises(CR0 | em, CR4, code), with_em, "{code:02x?}");
    }
    let no_fxsr = CR4 & !bit4::OSFXSR;
    assert_eq!(raises(CR0, no_fxsr, &sse), Some(vector::UD));
    assert_eq!(raises(CR0, no_fxsr, &mixed), Some(vector::UD));
    assert_eq!(raises(CR0, no_fxsr, &mmx), None);
    assert_eq!(raises(CR0, no_fxsr, &x87), None);
}

#[test]
fn avx_needs_osxsave_and_xcr0() {
    let code = assemble(|a| a.vpaddb(xmm0, xmm1, xmm2));
    assert_eq!(raises(CR0, CR4, &code), None);
    assert_eq!(raises(CR0, CR4 & !bit4::OSXSAVE, &code), Some(vector::UD));
    assert_eq!(raises(CR0 | bit0::TS, CR4, &code), Some(vector::NM));
    // CR0.EM and CR4.OSFXSR do not matter to VEX-encoded instructions.
    assert_eq!(raises(CR0 | bit0::EM, CR4 & !bit4::OSFXSR, &code), None);
    let mut whole = Whole::new();
    whole.guest.state.xcr0 = 3;
    whole.prepare(&code);
    assert_eq!(whole.execute(&mut machine()), Some(vector::UD));
}

#[test]
fn a_pending_x87_exception_is_taken_by_the_next_waiting_instruction() {
    let mut pending = machine();
    (pending.vector.fcw, pending.vector.fsw) = (0x37e, 0x8081);
    for code in [
        assemble(|a| a.fld1()),
        assemble(|a| a.wait()),
        assemble(|a| a.emms()),
        assemble(|a| a.paddb(mm0, mm1)),
        assemble(|a| a.movq2dq(xmm0, mm1)),
    ] {
        let (exception, after) = execute(CR0, CR4, &code, pending.clone());
        assert_eq!(exception, Some(vector::MF), "{code:02x?}");
        assert_eq!(after, pending);
    }
    for code in [
        assemble(|a| a.fnclex()),
        assemble(|a| a.fninit()),
        assemble(|a| a.fnstsw(ax)),
        assemble(|a| a.paddb(xmm0, xmm1)),
        assemble(|a| a.cvtpi2pd(xmm0, qword_ptr(READ_ONLY))),
    ] {
        assert_eq!(execute(CR0, CR4, &code, pending.clone()).0, None, "{code:02x?}");
    }
}

#[test]
fn a_simd_exception_is_undefined_without_osxmmexcpt() {
    let mut divide = machine();
    divide.vector.mxcsr = 0;
    divide.vector.ymm[1] = [0; 32];
    let code = assemble(|a| a.divps(xmm0, xmm1));
    let (exception, after) = execute(CR0, CR4, &code, divide.clone());
    assert_eq!((exception, after.vector.mxcsr), (Some(vector::XM), 4));
    assert_eq!(after.vector.ymm, divide.vector.ymm);
    let (exception, _) = execute(CR0, CR4 & !bit4::OSXMMEXCPT, &code, divide);
    assert_eq!(exception, Some(vector::UD));
}

#[test]
fn a_page_fault_leaves_everything_as_it_was() {
    let mut at_absent = machine();
    at_absent.general[gpr::RBX] = ABSENT - 4;
    at_absent.vector.ftw = 0x80;
    let loads = [
        assemble(|a| a.movups(xmm0, xmmword_ptr(rbx))),
        assemble(|a| a.movdqu(xmm0, xmmword_ptr(rbx))),
        assemble(|a| a.movlps(xmm0, qword_ptr(rbx))),
        assemble(|a| a.cvtps2pd(xmm0, qword_ptr(rbx))),
        assemble(|a| a.fadd(qword_ptr(rbx))),
        assemble(|a| a.paddb(mm0, qword_ptr(rbx))),
        assemble(|a| a.fldenv(ptr(rbx))),
        assemble(|a| a.vmovdqu(ymm0, ymmword_ptr(rbx))),
    ];
    let stores = [
        assemble(|a| a.movups(xmmword_ptr(rbx), xmm1)),
        assemble(|a| a.movq(qword_ptr(rbx), xmm1)),
        assemble(|a| a.fstp(qword_ptr(rbx))),
        assemble(|a| a.fistp(qword_ptr(rbx))),
        assemble(|a| a.fnsave(ptr(rbx))),
        assemble(|a| a.fnstenv(ptr(rbx))),
        assemble(|a| a.movntq(qword_ptr(rbx), mm1)),
        assemble(|a| a.vmovdqu(ymmword_ptr(rbx), ymm1)),
        assemble(|a| a.vcvtps2ph(qword_ptr(rbx), xmm1, 0)),
    ];
    let mut at_read_only = at_absent.clone();
    at_read_only.general[gpr::RBX] = READ_ONLY;
    for (code, from) in loads
        .iter()
        .map(|code| (code, &at_absent))
        .chain(stores.iter().flat_map(|code| [(code, &at_absent), (code, &at_read_only)]))
    {
        let mut whole = Whole::new();
        whole.write(ABSENT - 64, &[0x5a; 64]);
        whole.prepare(code);
        let mut after = from.clone();
        assert_eq!(whole.execute(&mut after), Some(vector::PF), "{code:02x?}");
        assert_eq!(&after, from, "{code:02x?}");
        let mut memory = [0; 64];
        whole.read(ABSENT - 64, &mut memory);
        assert_eq!(memory, [0x5a; 64], "{code:02x?} wrote before it faulted");
    }
}

#[test]
fn masked_out_elements_are_not_accessed() {
    let mut masked = machine();
    masked.general[gpr::RBX] = ABSENT - 8;
    masked.general[gpr::RDI] = ABSENT - 8;
    // Bytes and elements of the first 8 bytes only.
    masked.vector.ymm[2] = [0; 32];
    masked.vector.ymm[2][..8].fill(0x80);
    for code in [
        assemble(|a| a.vmaskmovps(xmm1, xmm2, xmmword_ptr(rbx))),
        assemble(|a| a.vpmaskmovd(ymm1, ymm2, ymmword_ptr(rbx))),
        assemble(|a| a.vmaskmovps(xmmword_ptr(rbx), xmm2, xmm1)),
        assemble(|a| a.vpmaskmovq(ymmword_ptr(rbx), ymm2, ymm1)),
        assemble(|a| a.maskmovdqu(xmm1, xmm2)),
        assemble(|a| a.vmaskmovdqu(xmm1, xmm2)),
    ] {
        assert_eq!(execute(CR0, CR4, &code, masked.clone()).0, None, "{code:02x?}");
        let mut one_more = masked.clone();
        one_more.vector.ymm[2][8..16].fill(0x80);
        assert_eq!(execute(CR0, CR4, &code, one_more).0, Some(vector::PF), "{code:02x?}");
    }
}

/// VPGATHERDD XMM1, [RBX + index], XMM2.
fn gather(index: Register) -> Vec<u8> {
    let memory = MemoryOperand::with_base_index(Register::RBX, index);
    let code = Code::VEX_Vpgatherdd_xmm_vm32x_xmm;
    assemble(|a| a.add_instruction(Instruction::with3(code, Register::XMM1, memory, Register::XMM2)?))
}

#[test]
fn a_gather_keeps_what_it_has_when_it_faults() {
    let mut before = machine();
    before.general[gpr::RBX] = ABSENT - 16;
    before.vector.ymm[1].fill(0x11);
    before.vector.ymm[2].fill(0xff);
    before.vector.ymm[3] = [0; 32];
    before.vector.ymm[3][4] = 4;
    before.vector.ymm[3][8] = 16;
    let mut whole = Whole::new();
    whole.write(ABSENT - 16, &[1, 0, 0, 0, 2, 0, 0, 0]);
    whole.prepare(&gather(Register::XMM3));
    let mut after = before.clone();
    assert_eq!(whole.execute(&mut after), Some(vector::PF));
    assert_eq!(after.vector.ymm[1][..12], [1, 0, 0, 0, 2, 0, 0, 0, 0x11, 0x11, 0x11, 0x11]);
    assert_eq!(after.vector.ymm[2][..12], [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn gather_operands_must_differ() {
    let same = gather(Register::XMM1);
    assert_eq!(raises(CR0, CR4, &same), Some(vector::UD));
}

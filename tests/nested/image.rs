//! The image of an L1 and its L2: multiboot header, tables, handlers, payloads.

use crate::asm;
use crate::code::{Code, Ends, exception, exception_in_l2, interrupt, interrupt_in_l2};
use crate::place::*;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::efer;

const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 0x20_0000;

/// Status that a payload which went wrong writes to the debug-exit port.
pub const WENT_WRONG: u32 = 1;
const SERIAL: u32 = 0x3f8;
const DEBUG_EXIT: u32 = 0xf4;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const HAS_ADDRESSES: u32 = 1 << 16;
const HEADER_SIZE: u64 = 32;

const NMI: u8 = 2;
const FIRST_INTERRUPT: u8 = 32;
const VECTORS: usize = 256;

/// A file in the making, to be loaded at [`IMAGE`].
pub struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let offset = (at - IMAGE) as usize;
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
    fn put_code(&mut self, at: u64, code: &[u8], limit: u64) {
        assert!(at + code.len() as u64 <= limit, "the code at {at:#x} is too long: {} bytes", code.len());
        self.put(at, code);
    }
}

/// The multiboot file of these payloads.
pub fn build(l1: impl FnOnce(&mut Code), l2: impl FnOnce(&mut Code)) -> Vec<u8> {
    let mut image = Image(vec![0; (IMAGE_END - IMAGE) as usize]);
    put_boot(&mut image);
    put_segments(&mut image);
    put_page_tables(&mut image);
    put_ept(&mut image);
    let ends = put_l1_runtime(&mut image);
    put_l2_runtime(&mut image);

    let mut code = Code::new(ends);
    asm!(&mut code; mov(r15d, LOG as u32); mov(esp, STACK_L1 as u32); mov(eax, u32::from(TASK_SELECTOR)); ltr(ax));
    l1(&mut code);
    code.finish();
    image.put_code(CODE_L1, &code.assemble(CODE_L1), CODE_L2);

    let mut code = Code::new(ends);
    l2(&mut code);
    asm!(&mut code; vmcall(); ud2());
    image.put_code(CODE_L2, &code.assemble(CODE_L2), IMAGE_END);
    image.0
}

/// From the loader's 32-bit protected mode to 64-bit mode.
fn put_boot(image: &mut Image) {
    let header = [
        HEADER_MAGIC,
        HAS_ADDRESSES,
        HEADER_MAGIC.wrapping_add(HAS_ADDRESSES).wrapping_neg(),
        BOOT as u32,
        IMAGE as u32,
        IMAGE_END as u32,
        IMAGE_END as u32,
        (BOOT + HEADER_SIZE) as u32,
    ];
    image.put(BOOT, &header.map(u32::to_le_bytes).concat());
    let table = |base: u64| [&0xfffu16.to_le_bytes()[..], &(base as u32).to_le_bytes()[..]].concat();
    let (gdtr, idtr) = (BOOT + 0x800, BOOT + 0x810);
    image.put(gdtr, &table(GDT)[..]);
    image.put(gdtr, &0x7ffu16.to_le_bytes());
    image.put(idtr, &table(IDT_L1));

    let mut a = CodeAssembler::new(32).expect("32 bits");
    let long = (cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG) as u32;
    let mut boot = || -> Result<(), iced_x86::IcedError> {
        a.mov(esp, STACK_L1 as u32)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr4::PAE as u32)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, crate::code::msr::EFER)?;
        a.mov(eax, (efer::LME | efer::SCE) as u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, long)?;
        a.mov(cr0, eax)?;
        a.lgdt(ptr(gdtr as u32))?;
        a.lidt(ptr(idtr as u32))?;
        a.mov(eax, u32::from(DATA_SELECTOR))?;
        for register in [ds, es, fs, gs, ss] {
            a.mov(register, eax)?;
        }
        a.push(i32::from(CODE_SELECTOR))?;
        a.push(CODE_L1 as i32)?;
        a.retf()
    };
    boot().expect("the boot code assembles");
    image.put(BOOT + HEADER_SIZE, &a.assemble(BOOT + HEADER_SIZE).expect("the boot code assembles"));
}

fn put_segments(image: &mut Image) {
    #[rustfmt::skip]
    let descriptors: [u64; 7] = [
        0,
        0x00af_9b00_0000_ffff, // 08H: code, 64-bit
        0x00cf_9300_0000_ffff, // 10H: data
        0x00af_fb00_0000_ffff, // 18H: code, 64-bit, DPL 3
        0x00cf_f300_0000_ffff, // 20H: data, DPL 3
        0x0000_8900_0000_0067 | (TSS & 0xff_ffff) << 16, // 28H: TSS
        0,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        image.put_u64(GDT + 8 * i as u64, descriptor);
    }
    image.put_u64(TSS + 4, STACK_L1_EXCEPTION);
    image.put(TSS + 0x66, &0x68u16.to_le_bytes());
}

fn put_page_tables(image: &mut Image) {
    const USABLE: u64 = 0x7;
    const LARGE: u64 = 0x80;
    image.put_u64(PML4, PML4 + PAGE + USABLE);
    image.put_u64(PML4 + PAGE, PML4 + 2 * PAGE + USABLE);
    for i in (0..512).filter(|i| i * LARGE_PAGE != NOT_MAPPED) {
        image.put_u64(PML4 + 2 * PAGE + 8 * i, (i * LARGE_PAGE) | LARGE | USABLE);
    }
}

fn put_ept(image: &mut Image) {
    const USABLE: u64 = 0x7;
    const WRITE_BACK: u64 = 6 << 3;
    const LARGE: u64 = 0x80;
    let directory = EPT_PML4 + 2 * PAGE;
    image.put_u64(EPT_PML4, EPT_PML4 + PAGE + USABLE);
    image.put_u64(EPT_PML4 + PAGE, directory + USABLE);
    for i in 0..RAM / LARGE_PAGE {
        image.put_u64(directory + 8 * i, (i * LARGE_PAGE) | LARGE | WRITE_BACK | USABLE);
    }
    image.put_u64(directory + 8 * (PAGES / LARGE_PAGE), EPT_PT + USABLE);
    for i in 0..512 {
        image.put_u64(EPT_PT + 8 * i, (PAGES + i * PAGE) | WRITE_BACK | USABLE);
    }
}

/// Handlers for all vectors, one after the other, which push the vector, and a 0 if there is no error code.
fn handlers(code: &mut Code, common: CodeLabel) -> Vec<CodeLabel> {
    let mut handlers = Vec::new();
    for vector in 0..VECTORS {
        let mut handler = code.label();
        code.asm.set_label(&mut handler).expect("a label is set once");
        if !vmcs12::arch::event::pushes_error_code(vector as u8) {
            asm!(code; push(0));
        }
        asm!(code; push(vector as i32); jmp(common));
        handlers.push(handler);
    }
    handlers
}

fn put_idt(image: &mut Image, idt: u64, addresses: &[u64]) {
    const INTERRUPT_GATE: u64 = 0xee00; // DPL 3: INT n by anybody
    for (vector, address) in addresses.iter().enumerate() {
        let low = address & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | INTERRUPT_GATE << 32
            | (address >> 16 & 0xffff) << 48;
        image.put_u64(idt + 16 * vector as u64, low);
    }
}

/// Jumps to `handler` if the vector, on top of the stack, is an interrupt's or NMI's.
fn if_interrupt(code: &mut Code, interrupt: CodeLabel) {
    asm!(code; cmp(qword_ptr(rsp), i32::from(NMI)); je(interrupt);
        cmp(qword_ptr(rsp), i32::from(FIRST_INTERRUPT)); jae(interrupt));
}

/// Logs the vector and the error code on top of the stack, in the form of `kind`, which is 0 for vector 0.
fn log_event(code: &mut Code, kind: u64) {
    asm!(code; mov(rax, qword_ptr(rsp + 8 * REGISTERS)); shl(rax, 32); or(rax, qword_ptr(rsp + 8 * REGISTERS + 8));
        mov(rcx, kind); or(rax, rcx));
    code.log_rax();
}

/// RAX, RCX and RDX are kept while an event is logged.
const REGISTERS: i32 = 3;

fn keep_registers(code: &mut Code) {
    asm!(code; push(rax); push(rcx); push(rdx));
}

fn restore_registers(code: &mut Code) {
    asm!(code; pop(rdx); pop(rcx); pop(rax));
}

fn set_runtime(
    image: &mut Image,
    code: &mut Code,
    (at, limit): (u64, u64),
    idt: u64,
    handlers: &[CodeLabel],
) -> Assembled {
    let result = code
        .asm
        .assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)
        .expect("the runtime assembles");
    let address = |label: &CodeLabel| result.label_ip(label).expect("the label is set");
    put_idt(image, idt, &handlers.iter().map(address).collect::<Vec<_>>());
    image.put_code(at, &result.inner.code_buffer, limit);
    Assembled(result)
}

struct Assembled(CodeAssemblerResult);

impl Assembled {
    fn address(&self, label: &CodeLabel) -> u64 {
        self.0.label_ip(label).expect("the label is set")
    }
}

/// L1: what it expects is logged and the payload goes on; anything else ends the run.
fn put_l1_runtime(image: &mut Image) -> Ends {
    let mut code = Code::new(Ends::default());
    let [mut event, mut signal, mut fatal, mut finish, mut dump] = [(); 5].map(|()| code.label());
    let handlers = handlers(&mut code, event);

    code.place(&mut event);
    if_interrupt(&mut code, signal);
    keep_registers(&mut code);
    log_event(&mut code, exception(0, 0));
    asm!(&mut code; mov(rax, qword_ptr(rsp + 8 * (REGISTERS + 2))));
    asm!(&mut code; mov(rcx, qword_ptr(CATCH as u32)); test(rcx, rcx); jz(fatal);
        mov(qword_ptr(CATCH as u32), 0); mov(rsp, qword_ptr(rsp + 8 * (REGISTERS + 5))); jmp(rcx));

    code.place(&mut signal);
    keep_registers(&mut code);
    log_event(&mut code, interrupt(0));
    let mut is_nmi = code.label();
    asm!(&mut code; cmp(qword_ptr(rsp + 8 * REGISTERS), i32::from(NMI)); je(is_nmi));
    code.wrmsr(crate::code::msr::X2APIC_EOI, 0);
    code.place(&mut is_nmi);
    restore_registers(&mut code);
    asm!(&mut code; add(rsp, 16); iretq());

    code.place(&mut finish);
    asm!(&mut code; xor(ebx, ebx); jmp(dump));
    code.place(&mut fatal);
    code.log_rax();
    asm!(&mut code; mov(ebx, WENT_WRONG));
    code.place(&mut dump);
    asm!(&mut code; mov(esi, LOG as u32); mov(rcx, r15); sub(rcx, rsi); mov(edx, SERIAL); cld());
    code.asm.rep().outsb().expect("REP OUTSB");
    asm!(&mut code; mov(eax, ebx); mov(edx, DEBUG_EXIT); out(dx, al); hlt());
    let assembled = set_runtime(image, &mut code, (RUNTIME_L1, RUNTIME_L2), IDT_L1, &handlers);
    Ends { finish: assembled.address(&finish), stranded: assembled.address(&fatal) }
}

/// L2: an exception is logged, and VMCALL hands it to L1; an interrupt or NMI is logged.
fn put_l2_runtime(image: &mut Image) {
    let mut code = Code::new(Ends::default());
    let [mut event, mut signal] = [(); 2].map(|()| code.label());
    let handlers = handlers(&mut code, event);

    code.place(&mut event);
    if_interrupt(&mut code, signal);
    keep_registers(&mut code);
    log_event(&mut code, exception_in_l2(0, 0));
    restore_registers(&mut code);
    asm!(&mut code; vmcall(); add(rsp, 16); iretq());

    code.place(&mut signal);
    keep_registers(&mut code);
    log_event(&mut code, interrupt_in_l2(0));
    restore_registers(&mut code);
    asm!(&mut code; add(rsp, 16); iretq());
    set_runtime(image, &mut code, (RUNTIME_L2, CODE_L1), IDT_L2, &handlers);
}

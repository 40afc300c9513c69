//! The host as the reference: loads a whole register state, executes one instruction with its own registers,
//! and stores the whole state, exceptions unmasked as the guest would have them.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmcs12::cpu_state::VectorState;

const PAGE: usize = 4096;
const CODE: usize = 0;
const AREA_IN: usize = PAGE;
const AREA_OUT: usize = PAGE + 1024;
const GENERAL_IN: usize = PAGE + 2048;
const GENERAL_OUT: usize = GENERAL_IN + 128;
const FLAGS_IN: usize = GENERAL_OUT + 128;
const FLAGS_OUT: usize = FLAGS_IN + 8;
const HOST_STACK: usize = FLAGS_IN + 16;
const HOST_MXCSR: usize = FLAGS_IN + 24;
/// Bytes of memory that an instruction can see: enough for an XSAVE area with AVX state.
pub const MEMORY: usize = 896;
/// Where they are.
pub const OPERAND: usize = PAGE + 3072;
const SIZE: usize = 2 * PAGE;

/// Everything that an instruction can read and write.
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    pub vector: VectorState,
    pub general: [u64; 16],
    pub rflags: u64,
    pub memory: [u8; MEMORY],
}

/// How an instruction ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    SimdException,
    GeneralProtection,
}

/// A page of code that anything can be assembled into, and a page of data.
pub struct Oracle {
    /// The signal handler knows of one instruction at a time.
    _turn: MutexGuard<'static, ()>,
    base: *mut u8,
    with_avx: bool,
}

static TURN: Mutex<()> = Mutex::new(());
static FAULTING: AtomicU64 = AtomicU64::new(0);
static RESUME: AtomicU64 = AtomicU64::new(0);
static TRAPPED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = &mut registers[libc::REG_RIP as usize];
    assert_eq!(*rip as u64, FAULTING.load(Ordering::Relaxed), "a signal that the test did not expect");
    *rip = RESUME.load(Ordering::Relaxed) as i64;
    TRAPPED.store(signal as u64, Ordering::Relaxed);
}

impl Oracle {
    pub fn new(with_avx: bool) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: all-zero is a valid sigaction, and the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGFPE, &action, ptr::null_mut()), 0);
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        }
        Self { _turn: turn, base: base.cast(), with_avx }
    }

    /// The address of the memory operand.
    pub fn operand_address(&self) -> u64 {
        self.address(OPERAND)
    }

    fn address(&self, offset: usize) -> u64 {
        self.base as u64 + offset as u64
    }

    fn data(&self, offset: usize) -> MemoryOperand {
        MemoryOperand::with_base_displ(Register::RIP, self.address(offset) as i64)
    }

    /// Assembles the code around an instruction's bytes.
    pub fn prepare(&mut self, instruction: &[u8]) {
        let mut code = Vec::new();
        self.emit_prologue(&mut code);
        FAULTING.store(self.address(code.len()), Ordering::Relaxed);
        code.extend_from_slice(instruction);
        RESUME.store(self.address(code.len()), Ordering::Relaxed);
        self.emit_epilogue(&mut code);
        assert!(code.len() <= PAGE);
        // SAFETY: the code page is ours, and not being executed.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.base.add(CODE), code.len()) };
    }

    fn emit_prologue(&self, code: &mut Vec<u8>) {
        for register in CALLEE_SAVED {
            self.emit(code, Instruction::with1(Code::Push_r64, register));
        }
        self.emit(code, Instruction::with2(Code::Mov_rm64_r64, self.data(HOST_STACK), Register::RSP));
        self.emit(code, Instruction::with1(Code::Stmxcsr_m32, self.data(HOST_MXCSR)));
        self.emit_components(code);
        let load = if self.with_avx { Code::Xrstor64_mem } else { Code::Fxrstor64_m512byte };
        self.emit(code, Instruction::with1(load, self.data(AREA_IN)));
        self.emit(code, Instruction::with1(Code::Push_rm64, self.data(FLAGS_IN)));
        self.emit(code, Ok(Instruction::with(Code::Popfq)));
        for (i, register) in general() {
            let from = self.data(GENERAL_IN + 8 * i);
            self.emit(code, Instruction::with2(Code::Mov_r64_rm64, register, from));
        }
    }

    fn emit_epilogue(&self, code: &mut Vec<u8>) {
        for (i, register) in general() {
            let to = self.data(GENERAL_OUT + 8 * i);
            self.emit(code, Instruction::with2(Code::Mov_rm64_r64, to, register));
        }
        self.emit(code, Instruction::with2(Code::Mov_r64_rm64, Register::RSP, self.data(HOST_STACK)));
        self.emit(code, Ok(Instruction::with(Code::Pushfq)));
        self.emit(code, Instruction::with1(Code::Pop_rm64, self.data(FLAGS_OUT)));
        self.emit_components(code);
        let store = if self.with_avx { Code::Xsave64_mem } else { Code::Fxsave64_m512byte };
        self.emit(code, Instruction::with1(store, self.data(AREA_OUT)));
        self.emit(code, Ok(Instruction::with(Code::Fninit)));
        self.emit(code, Instruction::with1(Code::Ldmxcsr_m32, self.data(HOST_MXCSR)));
        if self.with_avx {
            self.emit(code, Ok(Instruction::with(Code::VEX_Vzeroupper)));
        }
        for register in CALLEE_SAVED.into_iter().rev() {
            self.emit(code, Instruction::with1(Code::Pop_r64, register));
        }
        self.emit(code, Ok(Instruction::with(Code::Retnq)));
    }

    fn emit_components(&self, code: &mut Vec<u8>) {
        self.emit(code, Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 7));
        self.emit(code, Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0));
    }

    fn emit(&self, code: &mut Vec<u8>, instruction: Result<Instruction, iced_x86::IcedError>) {
        let mut encoder = Encoder::new(64);
        let rip = self.address(code.len());
        encoder.encode(&instruction.expect("a valid form"), rip).expect("encodable");
        code.extend(encoder.take_buffer());
    }

    /// Executes the prepared instruction.
    pub fn run(&mut self, machine: &mut Machine) -> Outcome {
        TRAPPED.store(0, Ordering::Relaxed);
        self.put(AREA_IN, &area(&machine.vector));
        self.put(AREA_OUT, &[0; 1024]);
        self.put(OPERAND, &machine.memory);
        self.put(FLAGS_IN, &machine.rflags.to_le_bytes());
        for (i, value) in machine.general.iter().enumerate() {
            self.put(GENERAL_IN + 8 * i, &value.to_le_bytes());
        }
        // SAFETY: the code page holds a complete function that keeps the ABI's promises.
        unsafe { std::mem::transmute::<*mut u8, extern "sysv64" fn()>(self.base.add(CODE))() };
        take(&mut machine.vector, &self.get::<832>(AREA_OUT));
        machine.memory = self.get(OPERAND);
        machine.rflags = u64::from_le_bytes(self.get(FLAGS_OUT));
        for (i, _) in general() {
            machine.general[i] = u64::from_le_bytes(self.get(GENERAL_OUT + 8 * i));
        }
        match TRAPPED.load(Ordering::Relaxed) as libc::c_int {
            0 => Outcome::Done,
            libc::SIGFPE => Outcome::SimdException,
            _ => Outcome::GeneralProtection,
        }
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset >= PAGE && offset + bytes.len() <= SIZE);
        // SAFETY: inside the data page, just asserted.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset), bytes.len()) };
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset >= PAGE && offset + N <= SIZE);
        // SAFETY: inside the data page, just asserted.
        unsafe { ptr::read_unaligned(self.base.add(offset).cast()) }
    }
}

const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The general registers that a test can use: all but RSP.
fn general() -> impl Iterator<Item = (usize, Register)> {
    (0..16).filter(|&i| i != 4).map(|i| (i, Register::RAX + i as u32))
}

/// XSAVE's standard format, written by hand.
fn area(state: &VectorState) -> [u8; 1024] {
    let mut area = [0; 1024];
    area[0..2].copy_from_slice(&state.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&state.fsw.to_le_bytes());
    area[4] = state.ftw;
    area[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    for i in 0..8 {
        area[32 + 16 * i..48 + 16 * i].copy_from_slice(&state.st[i]);
    }
    for i in 0..16 {
        area[160 + 16 * i..176 + 16 * i].copy_from_slice(&state.ymm[i][..16]);
        area[576 + 16 * i..592 + 16 * i].copy_from_slice(&state.ymm[i][16..]);
    }
    area[512] = 7;
    area
}

fn take(state: &mut VectorState, area: &[u8; 832]) {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    (state.fcw, state.fsw, state.ftw) = (word(0), word(2), area[4]);
    state.mxcsr = u32::from(word(24)) | u32::from(word(26)) << 16;
    for i in 0..8 {
        state.st[i].copy_from_slice(&area[32 + 16 * i..48 + 16 * i]);
    }
    let has_upper = area[512] & 4 != 0;
    for i in 0..16 {
        state.ymm[i][..16].copy_from_slice(&area[160 + 16 * i..176 + 16 * i]);
        if has_upper {
            state.ymm[i][16..].copy_from_slice(&area[576 + 16 * i..592 + 16 * i]);
        } else {
            state.ymm[i][16..].fill(0);
        }
    }
}

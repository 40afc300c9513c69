use super::*;
use crate::device::lapic::DEFAULT_BASE as APIC;
use crate::device::pit::CLOCK as PIT_CLOCK;

fn devices(processors: u32) -> Devices {
    Devices::new(Machine {
        processors,
        apic_timer: Frequency::new(100_000_000),
        x2apic: true,
        physical_width: 46,
        platform: Platform {
            memory_below_4g: 1 << 30,
            memory_above_4g: 0,
            date: 0,
            console: Box::new(std::io::sink()),
        },
    })
}

fn init_pics(bus: &mut Devices, mask: u32) {
    for (port, base, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
        bus.io_write(port, 1, 0x11, 0);
        bus.io_write(port + 1, 1, base, 0);
        bus.io_write(port + 1, 1, cascade, 0);
        bus.io_write(port + 1, 1, 1, 0);
    }
    bus.io_write(0x21, 1, mask & 0xff, 0);
    bus.io_write(0xa1, 1, mask >> 8, 0);
}

/// HZ = 100 on counter 0, rate generator.
fn start_pit(bus: &mut Devices) -> Nanos {
    bus.io_write(0x43, 1, 0x34, 0);
    bus.io_write(0x40, 1, 11932 & 0xff, 0);
    bus.io_write(0x40, 1, 11932 >> 8, 0);
    PIT_CLOCK.time_of(11933)
}

fn redirect(bus: &mut Devices, pin: u32, low: u32, high: u32) {
    for (register, value) in [(0x11 + 2 * pin, high), (0x10 + 2 * pin, low)] {
        bus.mmio_write(0, ioapic::BASE, 4, u64::from(register), 0);
        bus.mmio_write(0, ioapic::BASE + 0x10, 4, u64::from(value), 0);
    }
}

#[test]
fn the_timer_interrupts_through_the_8259_and_virtual_wire() {
    let mut bus = devices(1);
    init_pics(&mut bus, 0xfffe);
    let at = start_pit(&mut bus);
    let _ = bus.acknowledge(0); // OUT rose with the mode
    bus.io_write(0x20, 1, 0x20, 0);
    assert_eq!(bus.next_event(), Some(at));
    assert!(!bus.has_interrupt(0));
    bus.tick(at);
    assert!(bus.has_interrupt(0));
    assert_eq!(bus.acknowledge(0), Some(0x30));
    assert!(!bus.has_interrupt(0));
    assert_eq!(bus.acknowledge(0), None);
}

#[test]
fn the_timer_interrupts_through_pin_2() {
    let mut bus = devices(2);
    init_pics(&mut bus, 0xffff);
    redirect(&mut bus, 2, 0x51, 1 << 24);
    bus.mmio_write(1, APIC + 0xf0, 4, 0x1ff, 0);
    let at = start_pit(&mut bus);
    bus.acknowledge(1);
    bus.mmio_write(1, APIC + 0xb0, 4, 0, 0);
    bus.tick(at);
    assert!(!bus.has_interrupt(0));
    assert_eq!(bus.acknowledge(1), Some(0x51));
}

#[test]
fn the_serial_port_interrupts_on_irq_4_by_level() {
    let mut bus = devices(1);
    init_pics(&mut bus, 0xffff);
    redirect(&mut bus, 4, 0x61 | 1 << 15, 0);
    bus.io_write(0x3fc, 1, 8, 0);
    bus.io_write(0x3f9, 1, 1, 0);
    assert_eq!(bus.receive(b"ab"), 1);
    assert_eq!(bus.acknowledge(0), Some(0x61));
    bus.mmio_write(0, APIC + 0xb0, 4, 0, 0);
    assert_eq!(bus.acknowledge(0), Some(0x61), "still asserted at EOI");
    assert_eq!(bus.io_read(0x3f8, 1, 0), u32::from(b'a'));
    bus.mmio_write(0, APIC + 0xb0, 4, 0, 0);
    assert!(!bus.has_interrupt(0));
}

#[test]
fn processors_start_each_other() {
    let mut bus = devices(2);
    bus.mmio_write(0, APIC + 0x310, 4, 1 << 24, 0);
    bus.mmio_write(0, APIC + 0x300, 4, 0x4500, 0);
    assert!(bus.take_signals(1).init);
    bus.mmio_write(0, APIC + 0x300, 4, 0x4609, 0);
    assert_eq!(bus.take_signals(1).start_up, Some(9));
    assert!(!bus.take_signals(0).any());
}

#[test]
fn x2apic_mode_by_msr() {
    let mut bus = devices(1);
    let base = bus.read_msr(0, IA32_APIC_BASE, 0).expect("readable");
    assert_eq!(base, APIC | 0x900);
    bus.write_msr(0, IA32_APIC_BASE, base | 0x400, 0).expect("a transition that exists");
    assert_eq!(bus.mmio_read(0, APIC + 0x20, 4, 0), 0xffff_ffff);
    bus.write_msr(0, 0x83f, 0x44, 0).expect("self IPI");
    assert_eq!(bus.acknowledge(0), Some(0x44));
    assert_eq!(bus.write_msr(0, 0x80b, 0, 0), Ok(()));
    assert_eq!(bus.write_msr(0, IA32_APIC_BASE, base, 0), Err(GeneralProtection));
}

#[test]
fn the_apic_timer_is_an_event() {
    let mut bus = devices(1);
    bus.mmio_write(0, APIC + 0x3e0, 4, 0xb, 0);
    bus.mmio_write(0, APIC + 0x320, 4, 0xec, 0);
    bus.mmio_write(0, APIC + 0x380, 4, 1000, 0);
    assert_eq!(bus.next_event(), Some(10_000));
    bus.tick(10_000);
    assert_eq!(bus.acknowledge(0), Some(0xec));
    assert_eq!(bus.next_event(), None);
}

#[test]
fn nothing_answers_elsewhere() {
    let mut bus = devices(1);
    assert_eq!(bus.mmio_read(0, 0xfed0_0000, 4, 0), 0xffff_ffff);
    assert_eq!(bus.mmio_read(0, 0xc000_0000, 8, 0), u64::MAX);
    assert_eq!(bus.io_read(0x92, 1, 0), 0xff);
    bus.mmio_write(0, 0xc000_0000, 8, 1, 0);
}

#[test]
fn every_access_is_harmless() {
    let mut bus = devices(2);
    for size in [0, 1, 2, 3, 4, 8] {
        for port in 0..=0x1000 {
            bus.io_read(port, size, 1000);
            bus.io_write(port, size, 0x5a5a_5a5a, 1000);
        }
        for offset in 0..0x1000 {
            for base in [APIC, ioapic::BASE] {
                bus.mmio_read(1, base + offset, size, 1000);
                bus.mmio_write(1, base + offset, size, u64::MAX, 1000);
            }
        }
    }
    bus.tick(u64::MAX / 2);
    bus.tick(u64::MAX);
}

#[test]
fn whatever_a_guest_does_time_goes_on() {
    let mut bus = devices(3);
    let mut seed = 1u64;
    let mut random = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 20) % limit
    };
    let mut now = 0;
    for _ in 0..300_000 {
        now += random(10).pow(random(8) as u32);
        bus.tick(now);
        assert!(bus.next_event().is_none_or(|at| at > now), "an event that has passed");
        let (cpu, value, size) = (random(3) as usize, random(u64::MAX), 1 << random(4));
        let port = [0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0x71, 0x3f8, 0x3fc, 0x600, 0xa0][random(11) as usize];
        match random(7) {
            0 => bus.mmio_write(cpu, APIC + random(64) * 16, 4, value, now),
            1 => bus.mmio_write(cpu, ioapic::BASE + random(2) * 16, 4, random(0x1_0000), now),
            2 => _ = bus.write_msr(cpu, 0x800 + random(0x40) as u32, random(1 << 20), now),
            3 => _ = bus.write_msr(cpu, IA32_APIC_BASE, APIC | random(16) << 8, now),
            4 => bus.apic_mut(cpu).set_tsc_deadline(value, now + random(1 << 30), now),
            5 => _ = bus.io_write(port + random(3) as u16, size.min(4), value as u32, now),
            _ => _ = bus.io_read(port + random(3) as u16, size.min(4), now),
        }
        if bus.has_interrupt(cpu) {
            assert!(bus.acknowledge(cpu).is_some());
        }
    }
}

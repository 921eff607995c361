//! The live view of a cluster: what `top` draws, from three answers of the server and what has changed since the last.
//!
//! Pure: draws into a frame of any backend. Rates are differences of the server's own counters, so no event is missed
//! between two looks, and after a restart of the server they begin anew.
//!
//! Not here: the terminal and its keys (`cmd/top`).

use std::time::Duration;

use hostler_wire::api::{Done, QueueStats, Stats, Version, WorkerView};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Gauge, Paragraph, Row, Table};

use crate::duration::took;
use crate::output::list::{self, worker_state};
use crate::output::plain;

/// One look at the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    pub(crate) version: Version,
    pub(crate) stats: Stats,
    pub(crate) queues: Vec<QueueStats>,
    pub(crate) workers: Vec<WorkerView>,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    pub(crate) address: String,
    pub(crate) look: Look,
    /// Jobs a second, once there are two looks to compare.
    pub(crate) rates: Option<Rates>,
    /// Why this is not the newest there is.
    pub(crate) trouble: Option<String>,
}

/// Jobs a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    submitted: f64,
    succeeded: f64,
    failed: f64,
    attempts: f64,
}

impl Rates {
    /// What was done between two looks; none if the server was started anew between them.
    pub(crate) fn between(before: &Look, after: &Look, elapsed: Duration) -> Option<Self> {
        let seconds = elapsed.as_secs_f64();
        if before.version.epoch != after.version.epoch || seconds <= 0.0 {
            return None;
        }
        let rate = |of: fn(&Done) -> u64| {
            let (before, after) = (of(&before.stats.since_start), of(&after.stats.since_start));
            after.saturating_sub(before) as f64 / seconds
        };
        Some(Self {
            submitted: rate(|done| done.submitted),
            succeeded: rate(|done| done.succeeded),
            failed: rate(|done| done.failed),
            attempts: rate(|done| done.attempts),
        })
    }
}

/// Draws it.
pub(crate) fn draw(frame: &mut Frame<'_>, board: &Board) {
    let look = &board.look;
    let queue_lines = u16::try_from(look.queues.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Max(queue_lines),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(title(board), areas[0]);
    frame.render_widget(jobs(&look.stats), areas[1]);
    frame.render_widget(slots(look), short(areas[2]));
    frame.render_widget(rates(board), areas[3]);
    frame.render_widget(queues(&look.queues), areas[5]);
    frame.render_widget(workers(&look.workers), areas[6]);
    frame.render_widget(foot(board), areas[7]);
}

/// A bar as wide as the window says less than one that can be taken in at a glance.
fn short(area: Rect) -> Rect {
    Rect {
        width: area.width.min(72),
        ..area
    }
}

fn dim(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::DIM))
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

fn title(board: &Board) -> Line<'static> {
    let Version { version, epoch, .. } = &board.look.version;
    Line::from(vec![
        bold(format!("Server {}", plain(&board.address))),
        dim(format!("  version {}, start {epoch}", plain(version))),
    ])
}

fn jobs(stats: &Stats) -> Line<'static> {
    let oldest = stats
        .oldest_wait_ms
        .map_or("-".to_owned(), |ms| took(ms).clone());
    Line::from(vec![
        dim("Jobs    "),
        Span::raw(format!(
            "{} queued, {} scheduled, {} running, {} cancelling   oldest wait {oldest}",
            stats.queued, stats.scheduled, stats.running, stats.cancelling
        )),
    ])
}

fn slots(look: &Look) -> Gauge<'static> {
    let Stats { slots, workers, .. } = look.stats;
    let (used, ahead) = list::in_use(&look.workers);
    let share = if slots == 0 {
        0.0
    } else {
        (used as f64 / slots as f64).min(1.0)
    };
    Gauge::default()
        .gauge_style(Style::new().fg(Color::Cyan))
        .ratio(share)
        .label(format!(
            "{used} of {slots} slots on {workers} workers{}",
            list::ahead(ahead)
        ))
}

fn rates(board: &Board) -> Line<'static> {
    let text = match &board.rates {
        None => "…".to_owned(),
        Some(rates) => format!(
            "{:.1}/s submitted, {:.1}/s succeeded, {:.1}/s failed, {:.1}/s tried again",
            rates.submitted, rates.succeeded, rates.failed, rates.attempts
        ),
    };
    Line::from(vec![dim("Rates   "), Span::raw(text)])
}

fn header(names: &[&'static str]) -> Row<'static> {
    Row::new(names.iter().map(|name| Cell::from(*name)))
        .style(Style::new().add_modifier(Modifier::DIM))
}

fn queues(queues: &[QueueStats]) -> Table<'static> {
    let rows = queues.iter().map(|queue| {
        let nobody = queue.workers == 0 && queue.queued > 0;
        Row::new([
            plain(&queue.name),
            queue.queued.to_string(),
            queue.running.to_string(),
            queue.oldest_wait_ms.map_or("-".into(), took),
            queue.workers.to_string(),
            queue.slots.to_string(),
            if nobody { "no worker" } else { "" }.to_owned(),
        ])
        .style(if nobody {
            Style::new().fg(Color::Yellow)
        } else {
            Style::new()
        })
    });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Min(9),
    ];
    Table::new(rows, widths).header(header(&[
        "QUEUE",
        "QUEUED",
        "RUNNING",
        "OLDEST WAIT",
        "WORKERS",
        "SLOTS",
        "",
    ]))
}

fn workers(workers: &[WorkerView]) -> Table<'static> {
    let rows = workers.iter().map(|worker| {
        Row::new([
            plain(&worker.name),
            worker_state(worker).to_owned(),
            worker.held.to_string(),
            worker.slots.to_string(),
            format!("{} ago", took(worker.last_heard_ms)),
            plain(&worker.queues.join(",")),
        ])
        .style(if worker.connected {
            Style::new()
        } else {
            Style::new().fg(Color::Red)
        })
    });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(12),
        Constraint::Min(10),
    ];
    Table::new(rows, widths).header(header(&[
        "WORKER", "STATE", "HELD", "SLOTS", "HEARD", "QUEUES",
    ]))
}

fn foot(board: &Board) -> Paragraph<'static> {
    match &board.trouble {
        None => Paragraph::new(dim("q: quit")),
        Some(trouble) => Paragraph::new(Span::styled(
            format!("✗ {}", plain(trouble)),
            Style::new().fg(Color::Red),
        )),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn look() -> Look {
        Look {
            version: Version {
                version: "0.1.0".into(),
                epoch: 3,
                ..Version::default()
            },
            stats: Stats {
                queued: 12,
                running: 3,
                workers: 1,
                slots: 4,
                held: 6,
                oldest_wait_ms: Some(4_200),
                ..Stats::default()
            },
            queues: vec![
                QueueStats {
                    name: "default".into(),
                    queued: 10,
                    running: 3,
                    oldest_wait_ms: Some(4_200),
                    workers: 1,
                    slots: 4,
                },
                QueueStats {
                    name: "video\x1b[2J".into(),
                    queued: 2,
                    ..QueueStats::default()
                },
            ],
            workers: vec![WorkerView {
                name: "w-1".into(),
                connected: true,
                slots: 4,
                held: 6,
                last_heard_ms: 900,
                queues: vec!["default".into()],
                ..WorkerView::default()
            }],
        }
    }

    fn drawn(board: &Board, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, board)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        };
        (0..height).map(line).collect()
    }

    fn board() -> Board {
        Board {
            address: "http://127.0.0.1:7440".into(),
            look: look(),
            rates: None,
            trouble: None,
        }
    }

    #[test]
    fn the_board_shows_jobs_slots_rates_queues_and_workers() {
        let mut later = look();
        later.stats.since_start.submitted = 30;
        later.stats.since_start.succeeded = 5;
        let board = Board {
            rates: Rates::between(&look(), &later, Duration::from_secs(2)),
            ..board()
        };
        let lines = drawn(&board, 100, 14);
        assert_eq!(
            lines[..4],
            [
                "Server http://127.0.0.1:7440  version 0.1.0, start 3",
                "Jobs    12 queued, 0 scheduled, 3 running, 0 cancelling   oldest wait 4.2s",
                &lines[2],
                "Rates   15.0/s submitted, 2.5/s succeeded, 0.0/s failed, 0.0/s tried again",
            ]
        );
        assert!(
            lines[2].contains("4 of 4 slots on 1 workers, 2 more handed out ahead"),
            "{lines:#?}"
        );
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = lines.iter().map(|line| words(line)).collect();
        for wanted in [
            "QUEUE QUEUED RUNNING OLDEST WAIT WORKERS SLOTS",
            "default 10 3 4.2s 1 4",
            "video\u{fffd}[2J 2 0 - 0 0 no worker",
            "WORKER STATE HELD SLOTS HEARD QUEUES",
            "w-1 ✔ connected 6 4 900ms ago default",
            "q: quit",
        ] {
            assert!(
                lines.iter().any(|line| line == wanted),
                "{wanted:?}: {lines:#?}"
            );
        }
    }

    #[test]
    fn a_window_of_any_size_will_do_and_trouble_is_said() {
        let board = Board {
            trouble: Some("cannot reach the server".into()),
            ..board()
        };
        let lines = drawn(&board, 60, 12);
        assert_eq!(lines[11], "✗ cannot reach the server");
        for (width, height) in [(1, 1), (20, 3), (200, 60)] {
            drawn(&board, width, height);
        }
    }

    #[test]
    fn a_new_start_of_the_server_makes_no_false_rates() {
        let mut later = look();
        later.version.epoch = 4;
        assert_eq!(
            Rates::between(&look(), &later, Duration::from_secs(2)),
            None
        );
    }
}

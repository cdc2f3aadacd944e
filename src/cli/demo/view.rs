//! The show on a terminal: nodes with their pods, stopwatches, events.
//!
//! Draws a [`Show`] and decides nothing. Restores the terminal whatever happens.

use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use tokio_util::sync::CancellationToken;

use super::core::{Node, Show, ms};

/// Time between two pictures.
const FRAME: Duration = Duration::from_millis(40);

/// Draws until `done`; `q`, Esc and Ctrl-C cancel `quit`. Blocks: needs a thread of its own.
pub fn run(show: &Mutex<Show>, begun: Instant, quit: &CancellationToken, done: &CancellationToken) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = (|| {
        while !done.is_cancelled() {
            // A copy, so that drawing holds nobody up.
            let picture = show.lock().clone();
            terminal.draw(|frame| draw(frame, &picture, begun.elapsed(), quit.is_cancelled()))?;
            if event::poll(FRAME)?
                && let Input::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    quit.cancel();
                }
            }
        }
        Ok(())
    })();
    ratatui::restore();
    result
}

fn draw(frame: &mut Frame<'_>, show: &Show, now: Duration, quitting: bool) {
    let watches = u16::try_from(show.stopwatches.len()).unwrap_or(u16::MAX).clamp(1, 6);
    let [head, nodes, clocks, feed, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(8),
        Constraint::Length(watches + 2),
        Constraint::Min(5),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    let ready = show.board.ready();
    let color = if ready >= show.replicas { Color::Green } else { Color::Yellow };
    let title = Line::from(vec![
        Span::styled(" PHALANX ", Style::new().fg(Color::Black).bg(Color::Cyan).add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {:>6.1} s  ", now.as_secs_f64())),
        Span::styled(format!("{ready}/{} Ready", show.replicas), Style::new().fg(color).add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {}", show.act)),
    ]);
    frame.render_widget(Paragraph::new(title), head);

    let columns = Layout::horizontal(show.nodes.iter().map(|_| Constraint::Fill(1))).split(nodes);
    for (node, area) in show.nodes.iter().zip(columns.iter()) {
        draw_node(frame, show, node, *area);
    }
    draw_clocks(frame, show, now, clocks);
    draw_feed(frame, show, feed);
    let help = if quitting { " stopping everything ..." } else { " q quits and cleans up" };
    frame.render_widget(Paragraph::new(Line::styled(help, Style::new().fg(Color::DarkGray))), foot);
}

fn draw_node(frame: &mut Frame<'_>, show: &Show, node: &Node, area: Rect) {
    let killed = show.board.is_killed(&node.name);
    let (state, color) = match (killed, show.board.node_ready(&node.name)) {
        (true, _) => ("KILLED", Color::Red),
        (false, true) => ("Ready", Color::Green),
        (false, false) => ("starting", Color::Yellow),
    };
    let star = if show.leader.as_deref() == Some(node.name.as_str()) { "★ " } else { "" };
    let role = if node.server { "server" } else { "agent" };
    let block = Block::new().borders(Borders::ALL).border_style(Style::new().fg(color)).title(Line::from(vec![
        Span::styled(format!(" {star}{} ", node.name), Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(format!("{role} {state} "), Style::new().fg(color)),
    ]));
    let pods = show.board.on(&node.name);
    let lines: Vec<Line<'_>> = pods
        .iter()
        .map(|pod| {
            let (sign, color) = match (killed, pod.terminating, pod.ready) {
                (true, _, _) => ("✗", Color::Red),
                (_, true, _) => ("○", Color::DarkGray),
                (_, _, true) => ("●", Color::Green),
                (_, _, false) => ("◐", Color::Yellow),
            };
            // The end of the name tells pods apart; its beginning is the same for all.
            let short = pod.name.rsplit('-').next().unwrap_or(&pod.name);
            Line::from(vec![Span::styled(sign, Style::new().fg(color)), Span::raw(format!(" {short}"))])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_clocks(frame: &mut Frame<'_>, show: &Show, now: Duration, area: Rect) {
    let bold = |color| Style::new().fg(color).add_modifier(Modifier::BOLD);
    let lines: Vec<Line<'_>> = show
        .stopwatches
        .iter()
        .map(|watch| {
            let (span, style) = match watch.took {
                Some(took) => (took, bold(Color::Green)),
                None => (now.saturating_sub(watch.started), bold(Color::Yellow)),
            };
            Line::from(vec![
                Span::styled(format!("{:>9}", ms(span)), style),
                Span::raw(format!("  {} → {}", watch.title, watch.until)),
            ])
        })
        .collect();
    let block = Block::new().borders(Borders::ALL).title(" Stopwatch ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_feed(frame: &mut Frame<'_>, show: &Show, area: Rect) {
    let room = usize::from(area.height.saturating_sub(2));
    let skip = show.feed.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = show
        .feed
        .iter()
        .skip(skip)
        .map(|(at, text)| {
            let style = if text.starts_with("kill") { Style::new().fg(Color::Red) } else { Style::new() };
            Line::from(vec![
                Span::styled(format!("{:>7.3} ", at.as_secs_f64()), Style::new().fg(Color::DarkGray)),
                Span::styled(text.clone(), style),
            ])
        })
        .collect();
    let block = Block::new().borders(Borders::ALL).title(" Events ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[cfg(test)]
mod tests {
    use super::super::core::Event;
    use super::*;
    use crate::cli::failover::board::{Change, PodSeen};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn picture(show: &Show, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("backend");
        terminal.draw(|frame| draw(frame, show, Duration::from_millis(1500), false)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn nodes_pods_stopwatches_and_events_are_on_the_screen() {
        let mut show = Show::new(1);
        let node = |name: &str, server| Node { name: name.into(), server };
        show.apply(Event::Nodes(vec![node("n1", true), node("n2", false)]), Duration::ZERO);
        show.apply(Event::Leader(Some("n1".into())), Duration::ZERO);
        let pod = PodSeen {
            uid: "u".into(),
            name: "demo-abc-x7f2k".into(),
            node: "n2".into(),
            ready: true,
            version: 1,
            ..PodSeen::default()
        };
        show.apply(Event::Change(Change::Pod(pod)), Duration::ZERO);
        let text = picture(&show, 80, 24);
        for part in ["★ n1", "server", "● x7f2k", "1/1 Ready", "demo-abc-x7f2k Ready on n2", "q quits"] {
            assert!(text.contains(part), "missing {part}:\n{text}");
        }
        show.apply(Event::Kill { node: "n2".into(), leader: false }, Duration::from_millis(500));
        let text = picture(&show, 80, 24);
        for part in ["n2 agent KILLED", "✗ x7f2k", "0/1 Ready", "1.000 s"] {
            assert!(text.contains(part), "missing {part}:\n{text}");
        }
    }

    #[test]
    fn a_tiny_terminal_is_no_panic() {
        let mut show = Show::new(1);
        show.apply(Event::Kill { node: "n2".into(), leader: true }, Duration::ZERO);
        picture(&show, 5, 3);
        picture(&show, 1, 1);
    }
}

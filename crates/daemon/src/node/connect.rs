//! Commands about the connection of a resource.

use std::rc::Rc;

use udrbd_control::options::{NetOptions, OptionChanges, OptionSet};
use udrbd_control::protocol::CommandResult;
use udrbd_control::{Address, ReturnCode};
use udrbd_engine::interface::Command;

use super::commands::{bad_option, no_answer, one_at_a_time, pass, unknown_resource};
use super::resource::Net;
use super::{Node, convert};
use crate::messages::ToEngine;

/// What `connect` asks for.
pub(super) struct Wanted {
    pub(super) local: Address,
    pub(super) peer: Address,
    pub(super) options: NetOptions,
    pub(super) discard_my_data: bool,
    pub(super) tentative: bool,
}

fn unknown_connection() -> CommandResult {
    CommandResult::with_info(ReturnCode::InvalidRequest, "unknown connection")
}

/// `connect`. Addresses are compared with those of all resources before anything else (states spec 19.2).
pub(super) async fn connect(node: &Rc<Node>, resource: &str, wanted: Wanted) -> CommandResult {
    one_at_a_time(node, resource, async || {
        let engine_options = convert::net_options(&wanted.options, wanted.discard_my_data, wanted.tentative);
        let endpoint = convert::endpoint(wanted.local, wanted.peer, &wanted.options);
        let answer = {
            let mut state = node.state.borrow_mut();
            let nets = || state.resources.iter().filter_map(|entry| entry.net.as_ref());
            if nets().any(|net| net.local == wanted.local) {
                return ReturnCode::LocalAddress.into();
            }
            if nets().any(|net| net.peer == wanted.peer) {
                return ReturnCode::PeerAddress.into();
            }
            let Some(entry) = state.resource_mut(resource) else { return unknown_resource() };
            if entry.net.is_some() {
                return ReturnCode::NetConfigured.into();
            }
            entry.connecting = true;
            let Wanted { local, peer, options, .. } = wanted;
            entry.net = Some(Net { local, peer, options });
            let options = Box::new(engine_options);
            entry.command(|id| ToEngine::Connect { id, options, endpoint })
        };
        let result = answer.await.unwrap_or_else(|_| no_answer());
        if let Some(entry) = node.state.borrow_mut().resource_mut(resource) {
            entry.connecting = false;
            if !result.code.is_success() {
                entry.net = None;
            }
        }
        node.show(resource);
        result
    })
    .await
}

fn find(node: &Node, local: Address, peer: Address) -> Option<String> {
    node.state.borrow().by_addresses(local, peer).map(|entry| entry.name.clone())
}

/// `net-options`.
pub(super) async fn change_options(
    node: &Rc<Node>,
    local: Address,
    peer: Address,
    changes: OptionChanges,
) -> CommandResult {
    let Some(resource) = find(node, local, peer) else {
        return CommandResult::with_info(ReturnCode::InvalidRequest, "net conf missing, try connect");
    };
    let resource = resource.as_str();
    one_at_a_time(node, resource, async || {
        let (options, answer) = {
            let mut state = node.state.borrow_mut();
            let Some(entry) = state.resource_mut(resource) else { return unknown_resource() };
            let Some(net) = &entry.net else { return unknown_connection() };
            let options = match net.options.with_changes(&changes) {
                Ok(options) => options,
                Err(error) => return bad_option(&error),
            };
            let engine_options = Box::new(convert::net_options(&options, false, false));
            let sockets = convert::socket_options(&options);
            let message = |id| ToEngine::NetOptions { id, options: engine_options, sockets };
            (options, entry.command(message))
        };
        let result = answer.await.unwrap_or_else(|_| no_answer());
        if result.code.is_success() {
            if let Some(entry) = node.state.borrow_mut().resource_mut(resource)
                && let Some(net) = &mut entry.net
            {
                net.options = options;
            }
            node.show(resource);
        }
        result
    })
    .await
}

/// `disconnect`.
pub(super) async fn disconnect(node: &Rc<Node>, local: Address, peer: Address, force: bool) -> CommandResult {
    let Some(resource) = find(node, local, peer) else { return unknown_connection() };
    let command = Command::Disconnect { force };
    if force {
        // It goes ahead of a command that waits for the peer.
        return pass(node, &resource, command).await;
    }
    one_at_a_time(node, &resource, async || pass(node, &resource, command).await).await
}

//! udrbdd: one reactor thread per resource, handlers, the control socket.

fn main() {}

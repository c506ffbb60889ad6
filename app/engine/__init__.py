"""The engine under Faust: driver, unit of work, transactional tables and the embedded broker."""

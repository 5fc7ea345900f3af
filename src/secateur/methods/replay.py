"""Where ``secateur.graph.replay`` stood; it goes once nothing imports it from here."""

from secateur.graph.replay import Flow, Replay, Seen, flow_of, held, shown

__all__ = ["Flow", "Replay", "Seen", "flow_of", "held", "shown"]

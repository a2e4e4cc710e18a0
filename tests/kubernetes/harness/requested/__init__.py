"""Objects at a stand-in API server, the controller that looks at them, and stand-ins for what runs behind them."""

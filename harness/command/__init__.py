"""The command line: composing, checking, spreading and telling."""

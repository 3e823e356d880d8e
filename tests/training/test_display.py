"""What is printed."""

from rich.console import Console

from excite.training.display import make_table


def test_brackets_in_names_are_shown_as_they_are():
    names = ["[bold]cat[/bold]", "photo[1].jpg", "[/x]", "a[red]"]
    rows = [{"name": name, "value": None if i else 1.5} for i, name in enumerate(names)]
    console = Console(width=80, record=True, quiet=False)
    console.print(make_table(rows, [("name", "[name]", ""), ("value", "value", ".2f")]))
    printed = console.export_text()
    for text in [*names, "[name]", "1.50", "-"]:
        assert text in printed

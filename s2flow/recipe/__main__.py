"""`python -m s2flow.recipe > docs/knobs.md`: the page of every knob."""

from s2flow.recipe.schema import page

if __name__ == "__main__":
    print(page(), end="")

"""What a chat template says of the day is the same every day: scores would differ else."""

from mmesh.models.judges import zero_shot


class Dated:
    """Renders as templates do that tell the model which day it is."""

    def apply_chat_template(self, messages, **options):
        return f"Today is {options['strftime_now']('%d %B %Y')}. {messages[0]['content']}"


def test_a_template_that_tells_the_day_tells_one_that_never_changes():
    rendered = zero_shot._render(Dated(), [{"role": "user", "content": "hello"}])
    assert rendered == "Today is 01 January 2026. hello"

"""Where nbgrader finds things: `minicos grade` reads this, and nbgrader's own commands do when run here."""

c = get_config()  # noqa: F821  (nbgrader defines it)

c.CourseDirectory.course_id = "minicos"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "assignments"
# All other steps lie under one folder that git ignores. nbgrader's own solution_directory is not our solutions/.
c.CourseDirectory.submitted_directory = "course/submitted"
c.CourseDirectory.autograded_directory = "course/autograded"
c.CourseDirectory.feedback_directory = "course/feedback"
c.CourseDirectory.solution_directory = "course/solution"
c.CourseDirectory.db_url = "sqlite:///course/gradebook.db"
# A module beside a notebook would be imported instead of the real one.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "*.py", "feedback"]

c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer.*"
c.ExecutePreprocessor.kernel_name = "python3"  # whatever the student's own is called
c.ExecutePreprocessor.timeout = 60
c.ExecutePreprocessor.interrupt_on_timeout = True

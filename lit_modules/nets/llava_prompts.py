"""Thirty-three ways to ask for a radiograph's findings (ASaRG, supplement: "33 paraphrasations querying for findings").

The paper's own list (its Table 3) is not in the text at hand; these are the project's. The first is the one that
evaluation asks.
"""

QUESTIONS = (
    "What are the findings of this chest X-ray?",
    "Describe the findings on this radiograph.",
    "Please write the findings section for this chest radiograph.",
    "Which findings does this image show?",
    "Report what you see on this chest X-ray.",
    "Can you list the radiological findings in this image?",
    "Give the findings for this chest film.",
    "What does this chest radiograph show?",
    "Summarise the visible findings of this examination.",
    "Tell me about the findings in this picture of the chest.",
    "Provide a findings paragraph for the X-ray shown.",
    "How would you describe the heart, lungs and bones on this image?",
    "What can be observed on this radiograph of the chest?",
    "Read this chest X-ray and state the findings.",
    "I need the findings of this study. What are they?",
    "Could you report the findings of this chest examination?",
    "Are there any findings on this chest X-ray? Describe them.",
    "Please go through this radiograph and note every finding.",
    "Compose the findings part of a report on this image.",
    "What would a radiologist note on this chest film?",
    "Look at this chest X-ray and describe what is normal and what is not.",
    "State all relevant findings of the radiograph.",
    "Which observations can be made from this chest X-ray?",
    "Describe this chest radiograph for the report.",
    "Write down the findings that this X-ray of the chest supports.",
    "Help me report this chest film: what are the findings?",
    "What is there to see on this X-ray?",
    "Interpret the image and give its findings.",
    "Draft the findings of a radiology report for this chest X-ray.",
    "What abnormal and normal findings are present in this radiograph?",
    "Please assess this chest radiograph and describe the findings.",
    "Give a detailed account of the findings in this chest image.",
    "From this chest X-ray, what findings should be documented?",
)
